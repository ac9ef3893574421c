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
 * Channel settings for chats.
 *
 * <ul>
 *   <li><b>Round robin</b> over all addresses of the name. gRPC's default is the first address
 *       only.
 *   <li><b>Retry of UNAVAILABLE and CANCELLED</b>, by gRPC and only before the first message: the
 *       service sends no headers earlier. A server reports CANCELLED for a call that it had not
 *       begun when it stopped (grpc/grpc#41785); gRPC never retries a call that the caller
 *       cancelled. The service itself has already retried every other error worth a retry.
 *   <li><b>Keepalive</b> while calls run, because a model may think for minutes and middleboxes
 *       forget silent connections.
 *   <li><b>20 MiB</b> per message, the service's own limit; gRPC's default of 4 MiB is too small
 *       for pictures.
 * </ul>
 */
public final class ChatChannel {
  private static final String DEFAULT_TARGET = "127.0.0.1:50051";
  private static final int MAX_MESSAGE_BYTES = 20 * 1024 * 1024;

  /** The service accepts one ping per 10 s and closes the connection if they come more often. */
  private static final long KEEPALIVE_SECONDS = 30;

  private static final long KEEPALIVE_TIMEOUT_SECONDS = 10;

  /** Includes the limit for requests, because the channel builder has no option for it. */
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
                      3.0, // gRPC requires each number to be a Double
                      "initialBackoff",
                      "0.2s",
                      "maxBackoff",
                      "2s",
                      "backoffMultiplier",
                      2.0,
                      "retryableStatusCodes",
                      List.of("UNAVAILABLE", "CANCELLED")))));

  private ChatChannel() {}

  /**
   * Opens a channel. It connects at the first call. Share one in the whole process and close it
   * with {@link ManagedChannel#shutdown}.
   *
   * @param target {@code host:port}; if null, CHATRPC_TARGET, else 127.0.0.1:50051
   * @throws IllegalArgumentException if the target, the key or the authorities are invalid
   */
  public static ManagedChannel open(String target, ChannelCredentials credentials) {
    return Grpc.newChannelBuilder(chooseTarget(target), credentials)
        .defaultServiceConfig(SERVICE_CONFIG)
        .maxInboundMessageSize(MAX_MESSAGE_BYTES)
        // gRPC can retry only a buffered request; the default of 1 MiB is too small for pictures.
        .perRpcBufferLimit(MAX_MESSAGE_BYTES)
        .retryBufferSize(10L * MAX_MESSAGE_BYTES)
        .keepAliveTime(KEEPALIVE_SECONDS, TimeUnit.SECONDS)
        .keepAliveTimeout(KEEPALIVE_TIMEOUT_SECONDS, TimeUnit.SECONDS)
        .intercept(MetadataUtils.newAttachHeadersInterceptor(authorization()))
        .build();
  }

  /** Returns credentials without encryption. */
  public static ChannelCredentials plaintext() {
    return InsecureChannelCredentials.create();
  }

  /** Returns TLS credentials that trust the authorities of the JVM. */
  public static ChannelCredentials tls() {
    return TlsChannelCredentials.create();
  }

  /** Returns TLS credentials that trust the authorities in a PEM file. */
  public static ChannelCredentials tls(File authorities) throws IOException {
    return TlsChannelCredentials.newBuilder().trustManager(authorities).build();
  }

  /**
   * Returns TLS credentials with a client certificate in PEM (mTLS).
   *
   * @param authorities the PEM file of the authorities to trust; if null, those of the JVM
   * @param key the certificate's key: PKCS#8, unencrypted
   * @throws IllegalArgumentException if the certificate or the key is invalid
   */
  public static ChannelCredentials tls(File authorities, File certificate, File key)
      throws IOException {
    var builder = TlsChannelCredentials.newBuilder().keyManager(certificate, key);
    if (authorities != null) {
      builder.trustManager(authorities);
    }
    ChannelCredentials credentials = builder.build();
    try { // Because the error of open() does not name the files.
      Grpc.newChannelBuilder(DEFAULT_TARGET, credentials);
    } catch (RuntimeException invalid) {
      throw new IllegalArgumentException(
          "%s, %s: %s; use PEM files of a certificate and its key, PKCS#8 and unencrypted"
              .formatted(certificate, key, invalid.getMessage()),
          invalid);
    }
    return credentials;
  }

  private static String chooseTarget(String target) {
    String chosen =
        Optional.ofNullable(target)
            .or(() -> Optional.ofNullable(System.getenv("CHATRPC_TARGET")))
            .filter(given -> !given.isBlank())
            .orElse(DEFAULT_TARGET);
    // Because a port out of range stops gRPC's resolver, and then calls wait for their deadline.
    Matcher port = Pattern.compile(":0*(\\d+)$").matcher(chosen);
    if (chosen.matches("(https?|grpcs?)://.*")
        || port.find()
            && (port.group(1).length() > 5 || Integer.parseInt(port.group(1)) > 65_535)) {
      throw new IllegalArgumentException(
          "target: %s is invalid; use host:port, such as %s".formatted(chosen, DEFAULT_TARGET));
    }
    return chosen;
  }

  private static Metadata authorization() {
    Metadata metadata = new Metadata();
    String key = System.getenv("CHATRPC_API_KEY");
    if (key == null || key.isEmpty()) {
      return metadata;
    }
    if (!key.matches("[ -~]+")) { // gRPC would drop it and log it
      throw new IllegalArgumentException(
          "CHATRPC_API_KEY: the key has characters that metadata cannot carry;"
              + " use printable ASCII only");
    }
    metadata.put(
        Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + key);
    return metadata;
  }
}
