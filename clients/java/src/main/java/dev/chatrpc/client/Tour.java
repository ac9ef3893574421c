package dev.chatrpc.client;

import dev.chatrpc.v1.ChatCompletionServiceGrpc;
import dev.chatrpc.v1.ChatCompletionServiceGrpc.ChatCompletionServiceBlockingStub;
import dev.chatrpc.v1.ChatMessage;
import dev.chatrpc.v1.ContentPart;
import dev.chatrpc.v1.CreateChatCompletionRequest;
import dev.chatrpc.v1.CreateChatCompletionResponse;
import dev.chatrpc.v1.CreateChatCompletionStreamResponse;
import dev.chatrpc.v1.FunctionCall;
import dev.chatrpc.v1.FunctionDefinition;
import dev.chatrpc.v1.ImageUrl;
import dev.chatrpc.v1.Tool;
import dev.chatrpc.v1.ToolCall;
import dev.chatrpc.v1.ToolChoice;
import dev.chatrpc.v1.Usage;
import io.grpc.ChannelCredentials;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import java.io.File;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Arrays;
import java.util.Base64;
import java.util.Iterator;
import java.util.Objects;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.logging.LogManager;

/** Examples of each use of chatrpc from Java. */
public final class Tour {
  private static final ChatMessage HELLO =
      ChatMessage.newBuilder().setRole("user").setContent("Hello!").build();

  /** UTF-8 in every locale, because models respond in all languages. */
  private static final PrintStream OUT =
      new PrintStream(new FileOutputStream(FileDescriptor.out), true, StandardCharsets.UTF_8);

  private final ChatCompletionServiceBlockingStub stub;
  private final String model;
  private final Duration timeout;

  private Tour(ChatCompletionServiceBlockingStub stub, String model, Duration timeout) {
    this.stub = stub;
    this.model = model;
    this.timeout = timeout;
  }

  /** Runs all examples; exits with 1 and one line on standard error if a call fails. */
  public static void main(String[] args) {
    LogManager.getLogManager().reset(); // gRPC would write to standard error
    System.exit(run(args));
  }

  private static int run(String[] args) {
    Arguments arguments;
    try {
      arguments = Arguments.parse(args);
    } catch (IllegalArgumentException invalid) {
      return fail(invalid.getMessage() + "; " + Arguments.USAGE, 2);
    }
    try {
      ManagedChannel channel = channel(arguments.target(), credentials(arguments));
      try {
        var stub = ChatCompletionServiceGrpc.newBlockingStub(channel);
        Tour tour = new Tour(stub, arguments.model(), arguments.timeout());
        tour.unary();
        tour.stream();
        tour.deadline();
        tour.cancel();
        tour.error();
        tour.tools();
        tour.image(arguments.imageBytes());
      } finally {
        channel.shutdownNow();
      }
      return 0;
    } catch (StatusRuntimeException failed) {
      return fail(ChatError.from(failed).toString(), 1);
    } catch (IOException | RuntimeException e) {
      return fail(Objects.requireNonNullElse(e.getMessage(), e.toString()), 1);
    }
  }

  /** Opens a channel. {@link ChatChannel} sets keepalive, round robin, retries and 20 MiB. */
  private static ManagedChannel channel(String target, ChannelCredentials credentials) {
    return ChatChannel.open(target, credentials);
  }

  /**
   * Chooses no TLS, the JVM's authorities or a CA file, and a client certificate for mTLS. The
   * channel reads CHATRPC_API_KEY.
   */
  private static ChannelCredentials credentials(Arguments arguments) throws IOException {
    if (arguments.certificate() != null) {
      return ChatChannel.tls(arguments.authorities(), arguments.certificate(), arguments.key());
    }
    if (arguments.authorities() != null) {
      return ChatChannel.tls(arguments.authorities());
    }
    return arguments.tls() ? ChatChannel.tls() : ChatChannel.plaintext();
  }

  /** Sends a request and receives the complete response. */
  private void unary() {
    var request = newRequest(model).addMessages(HELLO).setTemperature(0.2).build();
    show("unary", messageOf(within(timeout).createChatCompletion(request)).getContent());
  }

  /** Receives the response piece by piece. It ends without an exception only if complete. */
  private void stream() {
    var request = newRequest(model).addMessages(HELLO).build();
    Iterator<CreateChatCompletionStreamResponse> response =
        within(timeout).createChatCompletionStream(request);
    OUT.printf("%-10s", "stream");
    Usage usage = null;
    while (response.hasNext()) {
      var message = response.next();
      message.getChoicesList().stream()
          .filter(choice -> choice.getIndex() == 0)
          .forEach(choice -> OUT.print(choice.getDelta().getContent()));
      usage = message.hasUsage() ? message.getUsage() : usage;
    }
    OUT.println(
        usage == null
            ? " (usage not reported)"
            : " (%d tokens in, %d out)"
                .formatted(usage.getPromptTokens(), usage.getCompletionTokens()));
  }

  /** Sets a deadline. It applies up to the model: after it, the call stops everywhere. */
  private void deadline() {
    var request = newRequest("echo:delay=30").addMessages(HELLO).build();
    try {
      within(Duration.ofMillis(300)).createChatCompletion(request);
    } catch (StatusRuntimeException failed) {
      show("deadline", failed.getStatus().getCode().toString());
    }
  }

  /** Closes the context: this cancels the call, and the model stops. Not reading is not enough. */
  private void cancel() {
    var request = newRequest("echo:pieces=999,pace=0.02").addMessages(HELLO).build();
    var messages = new AtomicInteger();
    try (var context = Context.current().withCancellation()) {
      context.run(
          () -> {
            var response = within(timeout).createChatCompletionStream(request);
            while (messages.get() < 3 && response.hasNext()) {
              response.next();
              messages.incrementAndGet();
            }
          });
    }
    show("cancel", "stopped after " + messages + " messages");
  }

  /** Reads an error: code, reason, time to wait before a retry, the upstream's HTTP status. */
  private void error() {
    var request = newRequest("echo:status=429,retry_after=7").addMessages(HELLO).build();
    try {
      within(Duration.ofSeconds(5)).createChatCompletion(request);
    } catch (StatusRuntimeException e) {
      ChatError failed = ChatError.from(e);
      String retry =
          failed.retryAfter().map(Tour::seconds).map(", retry in %s s"::formatted).orElse("");
      String status = failed.upstream().map(error -> "" + error.getHttpStatus()).orElse("None");
      show(
          "error",
          failed.code() + " " + failed.reason() + retry + ", upstream's HTTP status " + status);
    }
  }

  /** Lets the model call a function, then sends the function's result with the chat. */
  private void tools() {
    var weather =
        Tool.newBuilder()
            .setFunction(
                FunctionDefinition.newBuilder()
                    .setName("weather")
                    .setParametersJson(
                        """
                        {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
                        """));
    var request =
        newRequest(model)
            .addMessages(HELLO)
            .addTools(weather)
            .setToolChoice(ToolChoice.newBuilder().setMode("required"))
            .build();
    ChatMessage message = messageOf(within(timeout).createChatCompletion(request));
    if (message.getToolCallsCount() == 0) {
      throw new IllegalStateException(
          "tools: the model called no function; use a model that supports tools");
    }
    ToolCall call = message.getToolCalls(0);
    var result =
        ChatMessage.newBuilder().setRole("tool").setToolCallId(call.getId()).setContent("sunny");
    var next =
        newRequest(model)
            .addMessages(HELLO)
            .addMessages(message)
            .addMessages(result)
            .addTools(weather)
            .build();
    within(timeout).createChatCompletion(next);
    FunctionCall function = call.getFunction();
    show("tools", function.getName() + "(" + function.getArguments() + ")");
  }

  /** Sends a picture as a data URL, which can exceed gRPC's default limit of 4 MiB. */
  private void image(int size) {
    String url = "data:image/png;base64," + Base64.getEncoder().encodeToString(new byte[size]);
    var message =
        ChatMessage.newBuilder()
            .setRole("user")
            .addContentParts(ContentPart.newBuilder().setText("What is this?"))
            .addContentParts(
                ContentPart.newBuilder().setImageUrl(ImageUrl.newBuilder().setUrl(url)));
    var request = newRequest(model).addMessages(message).build();
    show("image", messageOf(within(timeout).createChatCompletion(request)).getContent());
  }

  /** Returns a stub for one call, because its deadline counts from the moment it is set. */
  private ChatCompletionServiceBlockingStub within(Duration timeout) {
    return stub.withDeadlineAfter(timeout);
  }

  private static CreateChatCompletionRequest.Builder newRequest(String model) {
    return CreateChatCompletionRequest.newBuilder().setModel(model);
  }

  private static ChatMessage messageOf(CreateChatCompletionResponse response) {
    if (response.getChoicesCount() == 0) {
      throw new IllegalStateException("response: no choices; use another model");
    }
    return response.getChoices(0).getMessage();
  }

  private static String seconds(Duration duration) {
    return BigDecimal.valueOf(duration.toMillis(), 3).stripTrailingZeros().toPlainString();
  }

  private static void show(String name, String result) {
    OUT.printf("%-10s%s%n", name, result);
  }

  private static int fail(String message, int code) {
    System.err.println("chatrpc: " + message.strip().replaceAll("\\s+", " "));
    return code;
  }

  private record Arguments(
      String target,
      boolean tls,
      File authorities,
      File certificate,
      File key,
      String model,
      int imageBytes,
      Duration timeout) {

    static final String USAGE =
        "usage: tour [--target HOST:PORT] [--tls] [--ca-file FILE] [--cert FILE --key FILE]"
            + " [--model NAME] [--image-bytes N] [--timeout SECONDS]";

    static Arguments parse(String[] args) {
      String target = null;
      boolean tls = false;
      File authorities = null;
      File certificate = null;
      File key = null;
      String model = "echo";
      int imageBytes = 5 << 20;
      Duration timeout = Duration.ofSeconds(60);
      for (var rest = Arrays.asList(args).iterator(); rest.hasNext(); ) {
        String flag = rest.next();
        switch (flag) {
          case "--target" -> target = value(flag, rest);
          case "--tls" -> tls = true;
          case "--ca-file" -> authorities = new File(value(flag, rest));
          case "--cert" -> certificate = new File(value(flag, rest));
          case "--key" -> key = new File(value(flag, rest));
          case "--model" -> model = value(flag, rest);
          case "--image-bytes" -> imageBytes = (int) number(flag, rest, 100 << 20);
          case "--timeout" -> timeout = Duration.ofMillis((long) (1000 * number(flag, rest, 1e6)));
          default -> throw new IllegalArgumentException(flag + ": unknown argument; remove it");
        }
      }
      if ((certificate == null) != (key == null)) {
        throw new IllegalArgumentException("--cert, --key: one is missing; give both");
      }
      return new Arguments(
          target, tls, authorities, certificate, key, model, imageBytes, timeout);
    }

    private static String value(String flag, Iterator<String> rest) {
      if (!rest.hasNext()) {
        throw new IllegalArgumentException(flag + ": no value; pass one");
      }
      return rest.next();
    }

    private static double number(String flag, Iterator<String> rest, double most) {
      String text = value(flag, rest);
      try {
        double number = Double.parseDouble(text);
        if (number >= 0 && number <= most) {
          return number;
        }
      } catch (NumberFormatException e) {
        // Reported below, like a number out of range.
      }
      throw new IllegalArgumentException(
          "%s: %s is invalid; use a number from 0 to %.0f".formatted(flag, text, most));
    }
  }
}
