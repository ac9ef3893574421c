package dev.chatrpc.client;

import com.google.gson.FieldNamingPolicy;
import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.protobuf.MessageLite;
import dev.chatrpc.v1.ChatCompletionServiceGrpc;
import dev.chatrpc.v1.ChatCompletionServiceGrpc.ChatCompletionServiceBlockingStub;
import dev.chatrpc.v1.CreateChatCompletionRequest;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.MetadataUtils;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import java.util.stream.Stream;

/**
 * The Java driver of clients/conformance: reads one call per line, writes one result per line.
 */
public final class Conformance {
  private static final Gson GSON =
      new GsonBuilder()
          .setFieldNamingPolicy(FieldNamingPolicy.LOWER_CASE_WITH_UNDERSCORES)
          .serializeNulls()
          .create();

  private record Call(
      String name,
      String method,
      String request,
      Map<String, String> metadata,
      long timeoutMs,
      int cancelAfter,
      long cancelAfterMs,
      long pauseMs) {}

  private record Result(
      String name,
      Status.Code code,
      String message,
      String reason,
      String mappedReason,
      Long retryAfterMs,
      List<List<String>> fields,
      Integer upstreamStatus,
      String requestId,
      List<String> messages) {}

  private Conformance() {}

  /** Makes all calls. */
  public static void main(String[] args) {
    if (args.length != 1) {
      System.err.println("usage: conformance HOST:PORT < calls");
      System.exit(2);
    }
    try {
      drive(args[0]);
    } catch (Exception e) {
      System.err.println("chatrpc: " + e);
      System.exit(1);
    }
  }

  private static void drive(String target) throws Exception {
    ManagedChannel channel = ChatChannel.open(target, ChatChannel.plaintext());
    try {
      var stub = ChatCompletionServiceGrpc.newBlockingStub(channel);
      var calls = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
      for (String line; (line = calls.readLine()) != null; ) {
        byte[] result =
            GSON.toJson(make(stub, GSON.fromJson(line, Call.class)))
                .getBytes(StandardCharsets.UTF_8);
        System.out.writeBytes(result);
        System.out.println();
      }
    } finally {
      channel.shutdownNow();
    }
  }

  private static Result make(ChatCompletionServiceBlockingStub stub, Call call) throws Exception {
    Metadata metadata = new Metadata();
    call.metadata()
        .forEach(
            (key, value) ->
                metadata.put(Metadata.Key.of(key, Metadata.ASCII_STRING_MARSHALLER), value));
    var headers = new AtomicReference<Metadata>();
    var trailers = new AtomicReference<Metadata>();
    var calling =
        stub.withInterceptors(
            MetadataUtils.newAttachHeadersInterceptor(metadata),
            MetadataUtils.newCaptureMetadataInterceptor(headers, trailers));
    var timed =
        call.timeoutMs() == 0
            ? calling
            : calling.withDeadlineAfter(Duration.ofMillis(call.timeoutMs()));
    var messages = new ArrayList<String>();
    ChatError error = null;
    try (var context = Context.current().withCancellation()) {
      context.call(
          () -> {
            read(call, timed, context, messages);
            return null;
          });
    } catch (StatusRuntimeException failed) {
      error = ChatError.from(failed);
    }
    String requestId =
        Stream.of(headers, trailers)
            .map(AtomicReference::get)
            .filter(Objects::nonNull)
            .map(each -> each.get(ChatError.REQUEST_ID))
            .filter(Objects::nonNull)
            .findFirst()
            .orElse("");
    if (error == null) {
      return new Result(
          call.name(), Status.Code.OK, "", "", "", null, List.of(), null, requestId, messages);
    }
    return new Result(
        call.name(),
        error.code(),
        error.message(),
        error.reason(),
        error.mappedReason(),
        error.retryAfter().map(Duration::toMillis).orElse(null),
        error.fields().stream()
            .map(field -> List.of(field.getField(), field.getDescription()))
            .toList(),
        error.upstream().map(upstream -> upstream.getHttpStatus()).orElse(null),
        requestId,
        messages);
  }

  private static void read(
      Call call,
      ChatCompletionServiceBlockingStub stub,
      Context.CancellableContext context,
      List<String> messages)
      throws Exception {
    var request = CreateChatCompletionRequest.parseFrom(Base64.getDecoder().decode(call.request()));
    if (call.cancelAfterMs() > 0) {
      var later = CompletableFuture.delayedExecutor(call.cancelAfterMs(), TimeUnit.MILLISECONDS);
      later.execute(() -> context.cancel(null));
    }
    Iterator<? extends MessageLite> response =
        call.method().equals("CreateChatCompletion")
            ? List.of(stub.createChatCompletion(request)).iterator()
            : stub.createChatCompletionStream(request);
    while (true) {
      Thread.sleep(call.pauseMs());
      if (!response.hasNext()) {
        return;
      }
      messages.add(Base64.getEncoder().encodeToString(response.next().toByteArray()));
      if (messages.size() == call.cancelAfter()) {
        context.cancel(null);
      }
    }
  }
}
