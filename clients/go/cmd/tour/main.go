// Command tour runs an example of each use of chatrpc from Go.
package main

import (
	"context"
	"crypto/tls"
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

const usage = "usage: tour [--target HOST:PORT] [--tls] [--ca-file FILE] [--cert FILE --key FILE] [--model NAME] " +
	"[--image-bytes N] [--timeout SECONDS]"

var hello = &chatrpcv1.ChatMessage{Role: "user", Content: proto.String("Hello!")}

type tour struct {
	target, model             string
	tls                       bool
	caFile, certFile, keyFile *string
	imageBytes                int
	timeout                   time.Duration
	chat                      chatrpcv1.ChatCompletionServiceClient
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
	flags.Func("ca-file", "", set(&t.caFile))
	flags.Func("cert", "", set(&t.certFile))
	flags.Func("key", "", set(&t.keyFile))
	flags.StringVar(&t.model, "model", "echo", "")
	flags.IntVar(&t.imageBytes, "image-bytes", 5<<20, "")
	seconds := flags.Float64("timeout", 60, "")
	if err := flags.Parse(arguments); err != nil {
		return nil, err
	}
	t.timeout = time.Duration(*seconds * float64(time.Second))
	switch {
	case flags.NArg() > 0:
		return nil, fmt.Errorf("%s: unexpected argument; remove it", flags.Arg(0))
	case (t.certFile == nil) != (t.keyFile == nil):
		return nil, errors.New("--cert, --key: one is missing; give both")
	case t.imageBytes < 0:
		return nil, errors.New("--image-bytes: less than 0; use a number of bytes")
	case t.timeout <= 0:
		return nil, errors.New("--timeout: not more than 0; use a number of seconds")
	}
	return t, nil
}

// set returns the setter of a flag that differs from "" if it is absent, so that an empty path is an error.
func set(path **string) func(string) error {
	return func(value string) error {
		*path = &value
		return nil
	}
}

func (t *tour) run() error {
	channel, err := t.channel()
	if err != nil {
		return err
	}
	defer channel.Close()
	t.chat = chatrpcv1.NewChatCompletionServiceClient(channel)
	for _, example := range []func() error{t.unary, t.stream, t.deadline, t.cancel, t.error, t.tools, t.image} {
		err := example()
		if status.Code(err) == codes.Unavailable {
			// Because gRPC's message may lack the target, such as "no children to pick from" for a name without addresses.
			return fmt.Errorf("%w (target %s)", err, channel.Target())
		} else if err != nil {
			return err
		}
	}
	return nil
}

// channel opens a channel. chatrpc/channel.go sets keepalive, round robin, retries and 20 MiB.
func (t *tour) channel() (*grpc.ClientConn, error) {
	transport, err := t.credentials()
	if err != nil {
		return nil, err
	}
	return chatrpc.NewChannel(t.target, transport)
}

// credentials chooses no TLS, the system's authorities or a CA file, and a client certificate for mTLS. The channel
// reads the API key from CHATRPC_API_KEY.
func (t *tour) credentials() (credentials.TransportCredentials, error) {
	if !t.tls && t.caFile == nil && t.certFile == nil {
		return insecure.NewCredentials(), nil
	}
	config := &tls.Config{}
	if t.caFile != nil {
		authorities, err := chatrpc.LoadAuthorities(*t.caFile)
		if err != nil {
			return nil, err
		}
		config.RootCAs = authorities
	}
	if t.certFile != nil {
		certificate, err := chatrpc.LoadCertificate(*t.certFile, *t.keyFile)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	return credentials.NewTLS(config), nil
}

// unary sends a request and receives the complete response.
func (t *tour) unary() error {
	ctx, cancel := context.WithTimeout(context.Background(), t.timeout)
	defer cancel()
	response, err := t.chat.CreateChatCompletion(ctx, &chatrpcv1.CreateChatCompletionRequest{
		Model:       t.model,
		Messages:    []*chatrpcv1.ChatMessage{hello},
		Temperature: proto.Float64(0.2),
	})
	if err != nil {
		return chatrpc.FromError(err)
	}
	show("unary", message(response).GetContent())
	return nil
}

// stream receives the response piece by piece. It ends with io.EOF only if the response is complete.
func (t *tour) stream() error {
	ctx, cancel := context.WithTimeout(context.Background(), t.timeout)
	defer cancel()
	stream, err := t.chat.CreateChatCompletionStream(ctx, &chatrpcv1.CreateChatCompletionRequest{
		Model:    t.model,
		Messages: []*chatrpcv1.ChatMessage{hello},
	})
	if err != nil {
		return chatrpc.FromError(err)
	}
	fmt.Printf("%-10s", "stream")
	var usage *chatrpcv1.Usage
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return chatrpc.FromError(err)
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
		fmt.Println(" (usage not reported)")
	} else {
		fmt.Printf(" (%d tokens in, %d out)\n", usage.GetPromptTokens(), usage.GetCompletionTokens())
	}
	return nil
}

// deadline sets a deadline. It applies up to the model: after it, the call stops everywhere.
func (t *tour) deadline() error {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	_, err := t.chat.CreateChatCompletion(ctx, &chatrpcv1.CreateChatCompletionRequest{
		Model:    "echo:delay=30",
		Messages: []*chatrpcv1.ChatMessage{hello},
	})
	show("deadline", chatrpc.FromError(err).CodeName())
	return nil
}

// cancel leaves a stream early: it cancels the context, and the model stops.
func (t *tour) cancel() error {
	ctx, cancel := context.WithTimeout(context.Background(), t.timeout)
	defer cancel()
	stream, err := t.chat.CreateChatCompletionStream(ctx, &chatrpcv1.CreateChatCompletionRequest{
		Model:    "echo:pieces=999,pace=0.02",
		Messages: []*chatrpcv1.ChatMessage{hello},
	})
	if err != nil {
		return chatrpc.FromError(err)
	}
	for range 3 {
		if _, err := stream.Recv(); err != nil {
			return chatrpc.FromError(err)
		}
	}
	cancel()
	show("cancel", "stopped after 3 messages")
	return nil
}

// error reads an error: its code, its reason, the time to wait before a retry and the upstream's HTTP status.
func (t *tour) error() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := t.chat.CreateChatCompletion(ctx, &chatrpcv1.CreateChatCompletionRequest{
		Model:    "echo:status=429,retry_after=7",
		Messages: []*chatrpcv1.ChatMessage{hello},
	})
	failed := chatrpc.FromError(err)
	retry := ""
	if failed.Retry != nil {
		retry = fmt.Sprintf(", retry in %g s", failed.Retry.GetRetryDelay().AsDuration().Seconds())
	}
	show("error", fmt.Sprintf("%s %s%s, upstream's HTTP status %d",
		failed.CodeName(), failed.Reason(), retry, failed.Upstream.GetHttpStatus()))
	return nil
}

// tools lets the model call a function, then sends the function's result with the rest of the chat.
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
	response, err := t.chat.CreateChatCompletion(ctx, request)
	if err != nil {
		return chatrpc.FromError(err)
	}
	reply := message(response)
	if len(reply.GetToolCalls()) == 0 {
		return errors.New("tools: the model called no function; use a model that supports tools")
	}
	call := reply.GetToolCalls()[0]
	result := &chatrpcv1.ChatMessage{Role: "tool", ToolCallId: proto.String(call.GetId()), Content: proto.String("sunny")}
	request.Messages = append(request.Messages, reply, result)
	request.ToolChoice = nil
	if _, err := t.chat.CreateChatCompletion(ctx, request); err != nil {
		return chatrpc.FromError(err)
	}
	show("tools", fmt.Sprintf("%s(%s)", call.GetFunction().GetName(), call.GetFunction().GetArguments()))
	return nil
}

// image sends a picture as a data URL, which can exceed gRPC's default limit of 4 MiB.
func (t *tour) image() error {
	ctx, cancel := context.WithTimeout(context.Background(), t.timeout)
	defer cancel()
	url := "data:image/png;base64," + base64.StdEncoding.EncodeToString(make([]byte, t.imageBytes))
	response, err := t.chat.CreateChatCompletion(ctx, &chatrpcv1.CreateChatCompletionRequest{
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
		return chatrpc.FromError(err)
	}
	show("image", message(response).GetContent())
	return nil
}

// message returns the first choice's message, or nil if there are no choices; getters accept nil.
func message(response *chatrpcv1.CreateChatCompletionResponse) *chatrpcv1.ChatMessage {
	if len(response.GetChoices()) == 0 {
		return nil
	}
	return response.GetChoices()[0].GetMessage()
}

func show(name, result string) { fmt.Printf("%-10s%s\n", name, result) }
