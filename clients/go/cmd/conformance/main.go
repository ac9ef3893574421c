// Command conformance is the driver of clients/conformance for this client: calls in, a line each; what was seen out,
// a line each.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"chatrpc.dev/chatrpc"
	chatrpcv1 "chatrpc.dev/gen/chatrpc/v1"
)

type call struct {
	Name        string            `json:"name"`
	Method      string            `json:"method"`
	Request     []byte            `json:"request"`
	Metadata    map[string]string `json:"metadata"`
	TimeoutMS   int64             `json:"timeout_ms"`
	CancelAfter int               `json:"cancel_after"`
	PauseMS     int64             `json:"pause_ms"`
}

type result struct {
	Name           string      `json:"name"`
	Code           string      `json:"code"`
	Message        string      `json:"message"`
	Reason         string      `json:"reason"`
	MappedReason   string      `json:"mapped_reason"`
	RetryAfterMS   *int64      `json:"retry_after_ms"`
	Fields         [][2]string `json:"fields"`
	UpstreamStatus *int32      `json:"upstream_status"`
	RequestID      string      `json:"request_id"`
	Messages       [][]byte    `json:"messages"`
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: conformance HOST:PORT < calls")
		os.Exit(2)
	}
	if err := drive(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "chatrpc:", err)
		os.Exit(1)
	}
}

func drive(target string) error {
	channel, err := chatrpc.NewChannel(target, insecure.NewCredentials())
	if err != nil {
		return err
	}
	defer channel.Close()
	chat := chatrpcv1.NewChatCompletionServiceClient(channel)

	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var next call
		if err := in.Decode(&next); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		seen, err := next.make(chat)
		if err != nil {
			return err
		}
		if err := out.Encode(seen); err != nil {
			return err
		}
	}
}

// make fails where the driver cannot go on. A call that fails is no such case.
func (c call) make(chat chatrpcv1.ChatCompletionServiceClient) (*result, error) {
	request := &chatrpcv1.CreateChatCompletionRequest{}
	if err := proto.Unmarshal(c.Request, request); err != nil {
		return nil, err
	}
	ctx := metadata.NewOutgoingContext(context.Background(), metadata.New(c.Metadata))
	if c.TimeoutMS > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(c.TimeoutMS)*time.Millisecond)
		defer cancel()
	}
	var header, trailer metadata.MD
	options := []grpc.CallOption{grpc.Header(&header), grpc.Trailer(&trailer)}

	var messages []proto.Message
	var failed error
	switch c.Method {
	case "CreateChatCompletion":
		var answer proto.Message
		if answer, failed = chat.CreateChatCompletion(ctx, request, options...); failed == nil {
			messages = append(messages, answer)
		}
	case "CreateChatCompletionStream":
		messages, failed = c.read(ctx, chat, request, options)
	default:
		return nil, fmt.Errorf("no such method: %q", c.Method)
	}
	return c.seen(messages, chatrpc.ErrorOf(failed, header, trailer))
}

func (c call) read(
	ctx context.Context,
	chat chatrpcv1.ChatCompletionServiceClient,
	request *chatrpcv1.CreateChatCompletionRequest,
	options []grpc.CallOption,
) (messages []proto.Message, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := chat.CreateChatCompletionStream(ctx, request, options...)
	if err != nil {
		return nil, err
	}
	for {
		time.Sleep(time.Duration(c.PauseMS) * time.Millisecond)
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return messages, nil
		} else if err != nil {
			return messages, err
		}
		if messages = append(messages, message); len(messages) == c.CancelAfter {
			cancel()
		}
	}
}

func (c call) seen(messages []proto.Message, e *chatrpc.Error) (*result, error) {
	seen := &result{
		Name:         c.Name,
		Code:         e.CodeName(),
		Message:      e.Message(),
		Reason:       e.Reason(),
		MappedReason: e.MappedReason(),
		Fields:       [][2]string{},
		RequestID:    e.RequestID,
		Messages:     [][]byte{},
	}
	if e.Retry != nil {
		seen.RetryAfterMS = proto.Int64(e.Retry.GetRetryDelay().AsDuration().Milliseconds())
	}
	for _, violation := range e.BadRequest.GetFieldViolations() {
		seen.Fields = append(seen.Fields, [2]string{violation.GetField(), violation.GetDescription()})
	}
	if e.Upstream != nil {
		seen.UpstreamStatus = proto.Int32(e.Upstream.GetHttpStatus())
	}
	for _, message := range messages {
		bytes, err := proto.Marshal(message)
		if err != nil {
			return nil, err
		}
		seen.Messages = append(seen.Messages, bytes)
	}
	return seen, nil
}
