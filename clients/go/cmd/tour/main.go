// Command tour shows what one does with chatrpc, from Go, one thing after the other.
package main

import (
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"chatrpc.dev/chatrpc"
	chatrpcv1 "chatrpc.dev/gen/chatrpc/v1"
)

const usage = "usage: tour [--target HOST:PORT] [--tls] [--ca-file FILE] [--model NAME] [--image-bytes N] " +
	"[--timeout SECONDS]"

var hello = &chatrpcv1.ChatMessage{Role: "user", Content: proto.String("Hello!")}

type tour struct {
	target, caFile, model string
	tls                   bool
	imageBytes            int
	timeout               time.Duration
	chat                  chatrpcv1.ChatCompletionServiceClient
}

func main() {
	t, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		fmt.Println(usage)
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "chatrpc: %v; %s\n", err, usage)
		os.Exit(2)
	}
	if err := t.run(); err != nil {
		line := strings.Join(strings.Fields(err.Error()), " ")
		fmt.Fprintln(os.Stderr, "chatrpc:", line)
		os.Exit(1)
	}
}

func parse(arguments []string) (*tour, error) {
	t := &tour{}
	flags := flag.NewFlagSet("tour", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&t.target, "target", "", "")
	flags.BoolVar(&t.tls, "tls", false, "")
	flags.StringVar(&t.caFile, "ca-file", "", "")
	flags.StringVar(&t.model, "model", "echo", "")
	flags.IntVar(&t.imageBytes, "image-bytes", 5<<20, "")
	seconds := flags.Float64("timeout", 60, "")
	if err := flags.Parse(arguments); err != nil {
		return nil, err
	}
	t.timeout = time.Duration(*seconds * float64(time.Second))
	switch {
	case flags.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument: %s", flags.Arg(0))
	case t.imageBytes < 0:
		return nil, errors.New("--image-bytes is less than 0")
	case t.timeout <= 0:
		return nil, errors.New("--timeout is not a time that a call may take")
	}
	return t, nil
}

func (t *tour) run() error {
	channel, err := t.channel()
	if err != nil {
		return err
	}
	defer channel.Close()
	t.chat = chatrpcv1.NewChatCompletionServiceClient(channel)
	for _, show := range []func() error{t.unary, t.stream, t.deadline, t.cancel, t.error, t.tools, t.image} {
		err := show()
		if status.Code(err) == codes.Unavailable {
			// gRPC does not always say who: a name without addresses is "no children to pick from" to it.
			return fmt.Errorf("%w (target %s)", err, channel.Target())
		} else if err != nil {
			return err
		}
	}
	return nil
}

// channel: keepalive, round robin, retries and 20 MiB are set in chatrpc/channel.go.
func (t *tour) channel() (*grpc.ClientConn, error) {
	transport, err := t.credentials()
	if err != nil {
		return nil, err
	}
	return chatrpc.NewChannel(t.target, transport)
}

// credentials: no TLS, or by the system's authorities, or by a file's. The key comes from CHATRPC_API_KEY by itself.
func (t *tour) credentials() (credentials.TransportCredentials, error) {
	switch {
	case t.caFile != "":
		return credentials.NewClientTLSFromFile(t.caFile, "")
	case t.tls:
		return credentials.NewTLS(nil), nil
	default:
		return insecure.NewCredentials(), nil
	}
}

// unary: one question, one answer.
func (t *tour) unary() error {
	ctx, cancel := context.WithTimeout(context.Background(), t.timeout)
	defer cancel()
	answer, err := t.chat.CreateChatCompletion(ctx, &chatrpcv1.CreateChatCompletionRequest{
		Model:       t.model,
		Messages:    []*chatrpcv1.ChatMessage{hello},
		Temperature: proto.Float64(0.2),
	})
	if err != nil {
		return chatrpc.ErrorOf(err)
	}
	show("unary", message(answer).GetContent())
	return nil
}

// stream: the same, piece by piece. It ends with io.EOF only if the answer is whole.
func (t *tour) stream() error {
	ctx, cancel := context.WithTimeout(context.Background(), t.timeout)
	defer cancel()
	stream, err := t.chat.CreateChatCompletionStream(ctx, &chatrpcv1.CreateChatCompletionRequest{
		Model:    t.model,
		Messages: []*chatrpcv1.ChatMessage{hello},
	})
	if err != nil {
		return chatrpc.ErrorOf(err)
	}
	fmt.Printf("%-10s", "stream")
	var usage *chatrpcv1.Usage
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return chatrpc.ErrorOf(err)
		}
		for _, choice := range chunk.GetChoices() {
			if choice.GetIndex() == 0 {
				fmt.Print(choice.GetDelta().GetContent())
			}
		}
		if chunk.GetUsage() != nil {
			usage = chunk.GetUsage()
		}
	}
	if usage == nil {
		fmt.Println(" (no usage told)")
	} else {
		fmt.Printf(" (%d tokens in, %d out)\n", usage.GetPromptTokens(), usage.GetCompletionTokens())
	}
	return nil
}

// deadline: it binds up to the model. What is not there in time is given up, everywhere.
func (t *tour) deadline() error {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	_, err := t.chat.CreateChatCompletion(ctx, &chatrpcv1.CreateChatCompletionRequest{
		Model:    "echo:delay=30",
		Messages: []*chatrpcv1.ChatMessage{hello},
	})
	show("deadline", chatrpc.ErrorOf(err).CodeName())
	return nil
}

// cancel: who leaves a stream cancels its context, and the model stops.
func (t *tour) cancel() error {
	ctx, cancel := context.WithTimeout(context.Background(), t.timeout)
	defer cancel()
	stream, err := t.chat.CreateChatCompletionStream(ctx, &chatrpcv1.CreateChatCompletionRequest{
		Model:    "echo:pieces=999,pace=0.02",
		Messages: []*chatrpcv1.ChatMessage{hello},
	})
	if err != nil {
		return chatrpc.ErrorOf(err)
	}
	for range 3 {
		if _, err := stream.Recv(); err != nil {
			return chatrpc.ErrorOf(err)
		}
	}
	cancel()
	show("cancel", "stopped after 3 messages")
	return nil
}

// error: the status says what kind of failure it is, its details which one, and what can be done.
func (t *tour) error() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := t.chat.CreateChatCompletion(ctx, &chatrpcv1.CreateChatCompletionRequest{
		Model:    "echo:status=429,retry_after=7",
		Messages: []*chatrpcv1.ChatMessage{hello},
	})
	failed := chatrpc.ErrorOf(err)
	again := ""
	if failed.Retry != nil {
		again = fmt.Sprintf(", again in %g s", failed.Retry.GetRetryDelay().AsDuration().Seconds())
	}
	show("error", fmt.Sprintf("%s %s%s, upstream's HTTP status %d",
		failed.CodeName(), failed.Reason(), again, failed.Upstream.GetHttpStatus()))
	return nil
}

// tools: the model asks for a function to be called; what it returned goes back with the rest of the chat.
func (t *tour) tools() error {
	ctx, cancel := context.WithTimeout(context.Background(), t.timeout)
	defer cancel()
	weather := &chatrpcv1.Tool{Function: &chatrpcv1.FunctionDefinition{
		Name: "weather",
		ParametersJson: proto.String(
			`{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}`),
	}}
	request := &chatrpcv1.CreateChatCompletionRequest{
		Model:      t.model,
		Messages:   []*chatrpcv1.ChatMessage{hello},
		Tools:      []*chatrpcv1.Tool{weather},
		ToolChoice: &chatrpcv1.ToolChoice{Choice: &chatrpcv1.ToolChoice_Mode{Mode: "required"}},
	}
	answer, err := t.chat.CreateChatCompletion(ctx, request)
	if err != nil {
		return chatrpc.ErrorOf(err)
	}
	asked := message(answer)
	if len(asked.GetToolCalls()) == 0 {
		return errors.New("the model did not ask for the tool")
	}
	call := asked.GetToolCalls()[0]
	result := &chatrpcv1.ChatMessage{Role: "tool", ToolCallId: proto.String(call.GetId()), Content: proto.String("sunny")}
	request.Messages = append(request.Messages, asked, result)
	request.ToolChoice = nil
	if _, err := t.chat.CreateChatCompletion(ctx, request); err != nil {
		return chatrpc.ErrorOf(err)
	}
	show("tools", fmt.Sprintf("%s(%s)", call.GetFunction().GetName(), call.GetFunction().GetArguments()))
	return nil
}

// image: a picture goes as a data URL. gRPC's usual limit, 4 MiB, would be too little for it.
func (t *tour) image() error {
	ctx, cancel := context.WithTimeout(context.Background(), t.timeout)
	defer cancel()
	url := "data:image/png;base64," + base64.StdEncoding.EncodeToString(make([]byte, t.imageBytes))
	answer, err := t.chat.CreateChatCompletion(ctx, &chatrpcv1.CreateChatCompletionRequest{
		Model: t.model,
		Messages: []*chatrpcv1.ChatMessage{{
			Role: "user",
			ContentParts: []*chatrpcv1.ContentPart{
				{Part: &chatrpcv1.ContentPart_Text{Text: "What is this?"}},
				{Part: &chatrpcv1.ContentPart_ImageUrl{ImageUrl: &chatrpcv1.ImageUrl{Url: url}}},
			},
		}},
	})
	if err != nil {
		return chatrpc.ErrorOf(err)
	}
	show("image", message(answer).GetContent())
	return nil
}

// message is that of the first choice. An answer without choices has none, and getters take that too.
func message(answer *chatrpcv1.CreateChatCompletionResponse) *chatrpcv1.ChatMessage {
	if len(answer.GetChoices()) == 0 {
		return nil
	}
	return answer.GetChoices()[0].GetMessage()
}

func show(name, what string) { fmt.Printf("%-10s%s\n", name, what) }
