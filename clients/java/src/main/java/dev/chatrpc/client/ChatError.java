package dev.chatrpc.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.BadRequest.FieldViolation;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RequestInfo;
import com.google.rpc.RetryInfo;
import dev.chatrpc.v1.UpstreamError;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.Optional;

/**
 * What a failed call says: its status with all the details that chatrpc gives.
 *
 * @param message what went wrong, in words; what gRPC itself says comes with its cause
 * @param reason such as {@code UPSTREAM_RATE_LIMITED}; empty if the status is of gRPC itself
 * @param mappedReason for {@code UPSTREAM_ERROR_BODY} what the upstream's error amounts to, if known
 * @param retryAfter when another try may succeed, if anybody said
 * @param fields what is wrong with the request
 * @param requestId the call's name in the logs of the service; empty if it was not reached
 * @param upstreamRequestId the call's name in the logs of the upstream; empty if it gave none
 * @param upstream what the upstream said, if it answered
 */
public record ChatError(
    Status.Code code,
    String message,
    String reason,
    String mappedReason,
    Optional<Duration> retryAfter,
    List<FieldViolation> fields,
    String requestId,
    String upstreamRequestId,
    Optional<UpstreamError> upstream) {

  public static final Metadata.Key<String> REQUEST_ID =
      Metadata.Key.of("x-request-id", Metadata.ASCII_STRING_MARSHALLER);

  /** Reads the status of a failed call. */
  public static ChatError of(StatusRuntimeException failed) {
    // If a request is over the limit, gRPC cancels the call, and why is only in the cause.
    if (failed.getStatus().getCode() == Status.Code.CANCELLED
        && failed.getCause() instanceof StatusRuntimeException refused) {
      return of(refused);
    }
    List<Any> details =
        Optional.ofNullable(StatusProto.fromThrowable(failed))
            .map(com.google.rpc.Status::getDetailsList)
            .orElse(List.of());
    Optional<ErrorInfo> info = detail(details, ErrorInfo.class);
    String requestId =
        Optional.ofNullable(failed.getTrailers()).map(all -> all.get(REQUEST_ID)).orElse("");
    return new ChatError(
        failed.getStatus().getCode(),
        message(failed.getStatus()),
        info.map(ErrorInfo::getReason).orElse(""),
        info.map(each -> each.getMetadataOrDefault("mapped_reason", "")).orElse(""),
        detail(details, RetryInfo.class)
            .map(RetryInfo::getRetryDelay)
            .map(delay -> Duration.ofSeconds(delay.getSeconds(), delay.getNanos())),
        detail(details, BadRequest.class).map(BadRequest::getFieldViolationsList).orElse(List.of()),
        requestId,
        detail(details, RequestInfo.class)
            .map(RequestInfo::getRequestId)
            .filter(id -> !id.equals(requestId))
            .orElse(""),
        detail(details, UpstreamError.class));
  }

  /** Reads as {@code CODE (REASON): message}. */
  @Override
  public String toString() {
    return code + (reason.isEmpty() ? "" : " (" + reason + ")") + ": " + message;
  }

  private static String message(Status status) {
    String words = Optional.ofNullable(status.getDescription()).orElse("no message");
    Throwable cause = status.getCause();
    while (cause != null && cause.getCause() != null) {
      cause = cause.getCause();
    }
    return cause == null ? words : words + ": " + cause.getMessage();
  }

  private static <T extends Message> Optional<T> detail(List<Any> details, Class<T> type) {
    try {
      for (Any detail : details) {
        if (detail.is(type)) {
          return Optional.of(detail.unpack(type));
        }
      }
    } catch (InvalidProtocolBufferException e) {
      // Somebody else's: the status alone has to do.
    }
    return Optional.empty();
  }
}
