package chatrpc

import (
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	chatrpcv1 "chatrpc.dev/gen/chatrpc/v1"
)

// Error is a call that failed, with the details of its status. A detail that was not sent is nil; its getters may be
// called all the same, and give zero values.
type Error struct {
	// Info has the reason, a word of the table in chat_error.proto. It is nil if the status is of gRPC itself.
	Info *errdetails.ErrorInfo
	// Retry tells when another try may succeed.
	Retry *errdetails.RetryInfo
	// BadRequest tells which fields of the request are wrong.
	BadRequest *errdetails.BadRequest
	// Request has the call's name in the logs of the upstream.
	Request *errdetails.RequestInfo
	// Upstream is what the upstream said. It is nil if it did not answer.
	Upstream *chatrpcv1.UpstreamError
	// RequestID is the call's name in the logs of the service. It is empty if the service was not reached.
	RequestID string

	status *status.Status
}

// ErrorOf reads the error of a call, and the call's metadata: its header, its trailer, or both. It is never nil: without
// an error its code is OK.
func ErrorOf(err error, md ...metadata.MD) *Error {
	// gRPC wraps the status of the last of several tries, and status.Convert would put words of its own before the
	// service's.
	if sent, ok := errors.AsType[interface {
		error
		GRPCStatus() *status.Status
	}](err); ok {
		err = sent
	}
	e := &Error{RequestID: RequestID(md...), status: status.Convert(err)}
	for _, detail := range e.status.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			e.Info = detail
		case *errdetails.RetryInfo:
			e.Retry = detail
		case *errdetails.BadRequest:
			e.BadRequest = detail
		case *errdetails.RequestInfo:
			e.Request = detail
		case *chatrpcv1.UpstreamError:
			e.Upstream = detail
		}
	}
	return e
}

// Code is the kind of failure; Reason is the case within it.
func (e *Error) Code() codes.Code { return e.status.Code() }

// CodeName is the code as the contract spells it: DEADLINE_EXCEEDED, where Code prints as DeadlineExceeded.
func (e *Error) CodeName() string { return code.Code(e.Code()).String() }

// Reason is such as UPSTREAM_RATE_LIMITED, or empty.
func (e *Error) Reason() string { return e.Info.GetReason() }

// MappedReason is what an error inside a stream (UPSTREAM_ERROR_BODY) amounts to, or empty.
func (e *Error) MappedReason() string { return e.Info.GetMetadata()["mapped_reason"] }

// Message is what went wrong, in words.
func (e *Error) Message() string { return e.status.Message() }

// GRPCStatus lets status.FromError and status.Code read an Error too.
func (e *Error) GRPCStatus() *status.Status { return e.status }

func (e *Error) Error() string {
	if e.Reason() == "" {
		return fmt.Sprintf("%s: %s", e.CodeName(), e.Message())
	}
	return fmt.Sprintf("%s (%s): %s", e.CodeName(), e.Reason(), e.Message())
}

// RequestID is the x-request-id in the metadata of a call, or empty.
func RequestID(md ...metadata.MD) string {
	for _, each := range md {
		if values := each.Get("x-request-id"); len(values) > 0 {
			return values[0]
		}
	}
	return ""
}
