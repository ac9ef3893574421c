package dev.chatrpc.client;

import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * How a channel is to be set up for chats.
 *
 * <ul>
 *   <li><b>Round robin</b> over all addresses of the name. gRPC's default stays with the first.
 *   <li><b>Retry of UNAVAILABLE only</b>, and by gRPC only until the first message. All else the
 *       service has tried again already, where that was any use.
 *   <li><b>Keepalive</b> while calls run: a model may think for minutes, and middleboxes forget
 *       what is silent.
 *   <li><b>20 MiB</b> a message, as the service takes. gRPC's own 4 MiB are too few for pictures.
 * </ul>
 */
public final class ChatChannel {
  private static final String DEFAULT_TARGET = "127.0.0.1:50051";
  private static final int MAX_MESSAGE_BYTES = 20 * 1024 * 1024;

  /** The service takes a ping each 10 s. If they come more often, it ends the connection. */
  private static final long KEEPALIVE_SECONDS = 30;

  private static final long KEEPALIVE_TIMEOUT_SECONDS = 10;

  /** The limit for requests is here too: of a builder's own options, none sets it. */
  private static final Map<String, ?> SERVICE_CONFIG =
      Map.of(
          "loadBalancingConfig",
          List.of(Map.of("round_robin", Map.of())),
          "methodConfig",
          List.of(
              Map.of(
                  "name",
                  List.of(Map.of("service", "chatrpc.v1.ChatCompletionService")),
                  "maxRequestMessageBytes",
                  (double) MAX_MESSAGE_BYTES,
                  "retryPolicy",
                  Map.of(
                      "maxAttempts",
                      3.0, // gRPC wants each number as a Double
                      "initialBackoff",
                      "0.2s",
                      "maxBackoff",
                      "2s",
                      "backoffMultiplier",
                      2.0,
                      "retryableStatusCodes",
                      List.of("UNAVAILABLE")))));

  private ChatChannel() {}

  /**
   * Opens a channel. It connects with the first call. Share one in the whole process, and end it
   * with {@link ManagedChannel#shutdown}.
   *
   * @param target {@code host:port}, or null: then CHATRPC_TARGET, else 127.0.0.1:50051
   * @throws IllegalArgumentException if the target, the key or the authorities are not usable
   */
  public static ManagedChannel open(String target, ChannelCredentials credentials) {
    return Grpc.newChannelBuilder(checked(target), credentials)
        .defaultServiceConfig(SERVICE_CONFIG)
        .maxInboundMessageSize(MAX_MESSAGE_BYTES)
        // Only what is kept can be tried again; the default, 1 MiB, is too little for pictures.
        .perRpcBufferLimit(MAX_MESSAGE_BYTES)
        .retryBufferSize(10L * MAX_MESSAGE_BYTES)
        .keepAliveTime(KEEPALIVE_SECONDS, TimeUnit.SECONDS)
        .keepAliveTimeout(KEEPALIVE_TIMEOUT_SECONDS, TimeUnit.SECONDS)
        .intercept(MetadataUtils.newAttachHeadersInterceptor(key()))
        .build();
  }

  /** Without encryption. */
  public static ChannelCredentials plaintext() {
    return InsecureChannelCredentials.create();
  }

  /** TLS, by the authorities that the JVM trusts. */
  public static ChannelCredentials tls() {
    return TlsChannelCredentials.create();
  }

  /** TLS, by the authorities in a PEM file. */
  public static ChannelCredentials tls(File authorities) throws IOException {
    return TlsChannelCredentials.newBuilder().trustManager(authorities).build();
  }

  private static String checked(String target) {
    String chosen =
        Optional.ofNullable(target)
            .or(() -> Optional.ofNullable(System.getenv("CHATRPC_TARGET")))
            .filter(given -> !given.isBlank())
            .orElse(DEFAULT_TARGET);
    // With a port out of range gRPC's resolver dies, and a call waits for its deadline.
    Matcher port = Pattern.compile(":0*(\\d+)$").matcher(chosen);
    if (chosen.matches("(https?|grpcs?)://.*")
        || port.find()
            && (port.group(1).length() > 5 || Integer.parseInt(port.group(1)) > 65_535)) {
      throw new IllegalArgumentException(
          "the target is host:port, such as %s, and not %s".formatted(DEFAULT_TARGET, chosen));
    }
    return chosen;
  }

  private static Metadata key() {
    Metadata metadata = new Metadata();
    String key = System.getenv("CHATRPC_API_KEY");
    if (key == null || key.isEmpty()) {
      return metadata;
    }
    if (!key.matches("[ -~]+")) { // gRPC would drop it, and write it to the log
      throw new IllegalArgumentException("CHATRPC_API_KEY has characters that no header can carry");
    }
    metadata.put(
        Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + key);
    return metadata;
  }
}
