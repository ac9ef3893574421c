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

/** What one does with chatrpc, from Java, one thing after the other. */
public final class Tour {
  private static final ChatMessage HELLO =
      ChatMessage.newBuilder().setRole("user").setContent("Hello!").build();

  /** UTF-8 whatever the locale: models answer in all languages. */
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

  /** Shows everything; 1 with one line on standard error where something fails that should not. */
  public static void main(String[] args) {
    LogManager.getLogManager().reset(); // else gRPC writes its warnings to standard error
    System.exit(run(args));
  }

  private static int run(String[] args) {
    Arguments arguments;
    try {
      arguments = Arguments.parse(args);
    } catch (IllegalArgumentException wrong) {
      return fail(wrong.getMessage() + "; " + Arguments.USAGE, 2);
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
      return fail(ChatError.of(failed).toString(), 1);
    } catch (IOException | RuntimeException wrong) {
      return fail(Objects.requireNonNullElse(wrong.getMessage(), wrong.toString()), 1);
    }
  }

  /** Keepalive, round robin, retries and 20 MiB: see {@link ChatChannel}. */
  private static ManagedChannel channel(String target, ChannelCredentials credentials) {
    return ChatChannel.open(target, credentials);
  }

  /** Of the server. The caller's own, CHATRPC_API_KEY, is in each call of the channel. */
  private static ChannelCredentials credentials(Arguments arguments) throws IOException {
    if (arguments.authorities() != null) {
      return ChatChannel.tls(arguments.authorities());
    }
    return arguments.tls() ? ChatChannel.tls() : ChatChannel.plaintext();
  }

  /** One question, one answer. */
  private void unary() {
    var request = asking(model).addMessages(HELLO).setTemperature(0.2).build();
    show("unary", said(within(timeout).createChatCompletion(request)).getContent());
  }

  /** The same, piece by piece. It ends without an exception only if the answer is whole. */
  private void stream() {
    var request = asking(model).addMessages(HELLO).build();
    Iterator<CreateChatCompletionStreamResponse> answer =
        within(timeout).createChatCompletionStream(request);
    OUT.printf("%-10s", "stream");
    Usage usage = null;
    while (answer.hasNext()) {
      var message = answer.next();
      message.getChoicesList().stream()
          .filter(choice -> choice.getIndex() == 0)
          .forEach(choice -> OUT.print(choice.getDelta().getContent()));
      usage = message.hasUsage() ? message.getUsage() : usage;
    }
    OUT.println(
        usage == null
            ? " (no usage told)"
            : " (%d tokens in, %d out)"
                .formatted(usage.getPromptTokens(), usage.getCompletionTokens()));
  }

  /** It binds up to the model: what is not there in time is given up, everywhere. */
  private void deadline() {
    var request = asking("echo:delay=30").addMessages(HELLO).build();
    try {
      within(Duration.ofMillis(300)).createChatCompletion(request);
    } catch (StatusRuntimeException late) {
      show("deadline", late.getStatus().getCode().toString());
    }
  }

  /** Closing the context cancels the call, and the model stops. Not to read on would not do. */
  private void cancel() {
    var request = asking("echo:pieces=999,pace=0.02").addMessages(HELLO).build();
    var messages = new AtomicInteger();
    try (var context = Context.current().withCancellation()) {
      context.run(
          () -> {
            var answer = within(timeout).createChatCompletionStream(request);
            while (messages.get() < 3 && answer.hasNext()) {
              answer.next();
              messages.incrementAndGet();
            }
          });
    }
    show("cancel", "stopped after " + messages + " messages");
  }

  /** The status says what kind of failure it is, its details which one, and what can be done. */
  private void error() {
    var request = asking("echo:status=429,retry_after=7").addMessages(HELLO).build();
    try {
      within(Duration.ofSeconds(5)).createChatCompletion(request);
    } catch (StatusRuntimeException e) {
      ChatError failed = ChatError.of(e);
      String again =
          failed.retryAfter().map(Tour::seconds).map(", again in %s s"::formatted).orElse("");
      String status = failed.upstream().map(said -> "" + said.getHttpStatus()).orElse("None");
      show(
          "error",
          failed.code() + " " + failed.reason() + again + ", upstream's HTTP status " + status);
    }
  }

  /** The model asks for a function to be called; what it returned goes back with the chat. */
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
        asking(model)
            .addMessages(HELLO)
            .addTools(weather)
            .setToolChoice(ToolChoice.newBuilder().setMode("required"))
            .build();
    ChatMessage asked = said(within(timeout).createChatCompletion(request));
    if (asked.getToolCallsCount() == 0) {
      throw new IllegalStateException("the model called no tool");
    }
    ToolCall call = asked.getToolCalls(0);
    var result =
        ChatMessage.newBuilder().setRole("tool").setToolCallId(call.getId()).setContent("sunny");
    var next =
        asking(model)
            .addMessages(HELLO)
            .addMessages(asked)
            .addMessages(result)
            .addTools(weather)
            .build();
    within(timeout).createChatCompletion(next);
    FunctionCall function = call.getFunction();
    show("tools", function.getName() + "(" + function.getArguments() + ")");
  }

  /** A picture goes as a data URL. gRPC's usual limit, 4 MiB, would be too little for it. */
  private void image(int size) {
    String url = "data:image/png;base64," + Base64.getEncoder().encodeToString(new byte[size]);
    var message =
        ChatMessage.newBuilder()
            .setRole("user")
            .addContentParts(ContentPart.newBuilder().setText("What is this?"))
            .addContentParts(
                ContentPart.newBuilder().setImageUrl(ImageUrl.newBuilder().setUrl(url)));
    var request = asking(model).addMessages(message).build();
    show("image", said(within(timeout).createChatCompletion(request)).getContent());
  }

  /** For each call anew: the clock of a stub's deadline runs from the moment it was set. */
  private ChatCompletionServiceBlockingStub within(Duration timeout) {
    return stub.withDeadlineAfter(timeout);
  }

  private static CreateChatCompletionRequest.Builder asking(String model) {
    return CreateChatCompletionRequest.newBuilder().setModel(model);
  }

  private static ChatMessage said(CreateChatCompletionResponse answer) {
    if (answer.getChoicesCount() == 0) {
      throw new IllegalStateException("the answer has no choices");
    }
    return answer.getChoices(0).getMessage();
  }

  private static String seconds(Duration duration) {
    return BigDecimal.valueOf(duration.toMillis(), 3).stripTrailingZeros().toPlainString();
  }

  private static void show(String name, String what) {
    OUT.printf("%-10s%s%n", name, what);
  }

  private static int fail(String why, int code) {
    System.err.println("chatrpc: " + why.strip().replaceAll("\\s+", " "));
    return code;
  }

  private record Arguments(
      String target,
      boolean tls,
      File authorities,
      String model,
      int imageBytes,
      Duration timeout) {

    static final String USAGE =
        "usage: tour [--target HOST:PORT] [--tls] [--ca-file FILE] [--model NAME]"
            + " [--image-bytes N] [--timeout SECONDS]";

    static Arguments parse(String[] args) {
      String target = null;
      boolean tls = false;
      File authorities = null;
      String model = "echo";
      int imageBytes = 5 << 20;
      Duration timeout = Duration.ofSeconds(60);
      for (var rest = Arrays.asList(args).iterator(); rest.hasNext(); ) {
        String flag = rest.next();
        switch (flag) {
          case "--target" -> target = value(flag, rest);
          case "--tls" -> tls = true;
          case "--ca-file" -> authorities = new File(value(flag, rest));
          case "--model" -> model = value(flag, rest);
          case "--image-bytes" -> imageBytes = (int) number(flag, rest, 100 << 20);
          case "--timeout" -> timeout = Duration.ofMillis((long) (1000 * number(flag, rest, 1e6)));
          default -> throw new IllegalArgumentException("unknown argument " + flag);
        }
      }
      return new Arguments(target, tls, authorities, model, imageBytes, timeout);
    }

    private static String value(String flag, Iterator<String> rest) {
      if (!rest.hasNext()) {
        throw new IllegalArgumentException(flag + " needs a value");
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
        // Said below, as for a number that is out of range.
      }
      throw new IllegalArgumentException(
          "%s takes a number from 0 to %.0f, not %s".formatted(flag, most, text));
    }
  }
}
