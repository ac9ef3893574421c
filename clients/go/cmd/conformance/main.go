// Command conformance is the Go driver of clients/conformance: it reads a call per line and writes a result per line.
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
	Name          string            `json:"name"`
	Method        string            `json:"method"`
	Request       []byte            `json:"request"`
	Metadata      map[string]string `json:"metadata"`
	TimeoutMS     int64             `json:"timeout_ms"`
	CancelAfter   int               `json:"cancel_after"`
	CancelAfterMS int64             `json:"cancel_after_ms"`
	PauseMS       int64             `json:"pause_ms"`
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
		res, err := next.make(chat)
		if err != nil {
			return err
		}
		if err := out.Encode(res); err != nil {
			return err
		}
	}
}

// make returns an error only if the driver cannot continue. The error of a failed call is part of the result.
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
		var response proto.Message
		if response, failed = chat.CreateChatCompletion(ctx, request, options...); failed == nil {
			messages = append(messages, response)
		}
	case "CreateChatCompletionStream":
		messages, failed = c.read(ctx, chat, request, options)
	default:
		return nil, fmt.Errorf("method: %q is unknown; use CreateChatCompletion or CreateChatCompletionStream", c.Method)
	}
	return c.result(messages, chatrpc.FromError(failed, header, trailer))
}

func (c call) read(
	ctx context.Context,
	chat chatrpcv1.ChatCompletionServiceClient,
	request *chatrpcv1.CreateChatCompletionRequest,
	options []grpc.CallOption,
) (messages []proto.Message, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if c.CancelAfterMS > 0 {
		time.AfterFunc(time.Duration(c.CancelAfterMS)*time.Millisecond, cancel)
	}
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

func (c call) result(messages []proto.Message, e *chatrpc.Error) (*result, error) {
	res := &result{
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
		res.RetryAfterMS = proto.Int64(e.Retry.GetRetryDelay().AsDuration().Milliseconds())
	}
	for _, violation := range e.BadRequest.GetFieldViolations() {
		res.Fields = append(res.Fields, [2]string{violation.GetField(), violation.GetDescription()})
	}
	if e.Upstream != nil {
		res.UpstreamStatus = proto.Int32(e.Upstream.GetHttpStatus())
	}
	for _, message := range messages {
		bytes, err := proto.Marshal(message)
		if err != nil {
			return nil, err
		}
		res.Messages = append(res.Messages, bytes)
	}
	return res, nil
}
