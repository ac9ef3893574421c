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
 * The error of a failed call: its status with all details that chatrpc sends.
 *
 * @param message the status's message, with its cause if gRPC itself made the status
 * @param reason such as {@code UPSTREAM_RATE_LIMITED}; empty if gRPC itself made the status
 * @param mappedReason for {@code UPSTREAM_ERROR_BODY}, the reason to which the upstream's error
 *     maps; empty if that is unknown
 * @param retryAfter the time after which a retry may succeed, if the response contained one
 * @param fields the invalid fields of the request
 * @param requestId the call's id in the service's logs; empty if the service was not reached
 * @param upstreamRequestId the call's id in the upstream's logs; empty if the upstream sent none
 * @param upstream the upstream's error, if the upstream responded
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
  public static ChatError from(StatusRuntimeException failed) {
    // If a request exceeds the limit, gRPC cancels the call; only the cause has the reason.
    if (failed.getStatus().getCode() == Status.Code.CANCELLED
        && failed.getCause() instanceof StatusRuntimeException refused) {
      return from(refused);
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

  /** Returns {@code CODE (REASON): message}. */
  @Override
  public String toString() {
    return code + (reason.isEmpty() ? "" : " (" + reason + ")") + ": " + message;
  }

  private static String message(Status status) {
    String text = Optional.ofNullable(status.getDescription()).orElse("no message");
    Throwable cause = status.getCause();
    while (cause != null && cause.getCause() != null) {
      cause = cause.getCause();
    }
    return cause == null ? text : text + ": " + cause.getMessage();
  }

  private static <T extends Message> Optional<T> detail(List<Any> details, Class<T> type) {
    try {
      for (Any detail : details) {
        if (detail.is(type)) {
          return Optional.of(detail.unpack(type));
        }
      }
    } catch (InvalidProtocolBufferException e) {
      // Details of another service: use the status alone.
    }
    return Optional.empty();
  }
}
