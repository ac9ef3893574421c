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

// Error is the error of a failed call, with the details of its status. A detail that was not sent is nil; its getters
// return zero values.
type Error struct {
	// Info has the reason, one of the table in chat_error.proto. It is nil if gRPC itself made the status.
	Info *errdetails.ErrorInfo
	// Retry has the time after which a retry may succeed.
	Retry *errdetails.RetryInfo
	// BadRequest lists the invalid fields of the request.
	BadRequest *errdetails.BadRequest
	// Request has the call's id in the upstream's logs.
	Request *errdetails.RequestInfo
	// Upstream is the upstream's error. It is nil if the upstream did not respond.
	Upstream *chatrpcv1.UpstreamError
	// RequestID is the call's id in the service's logs. It is empty if the service was not reached.
	RequestID string

	status *status.Status
}

// FromError returns the error of a call, and reads the call's metadata: its header, its trailer, or both. The result is
// never nil: without an error its code is OK.
func FromError(err error, md ...metadata.MD) *Error {
	// After several attempts gRPC wraps the last status, and status.Convert would put its own words before the message.
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

// Code returns the status code; Reason distinguishes the cases of one code.
func (e *Error) Code() codes.Code { return e.status.Code() }

// CodeName returns the code in the spelling of the contract: DEADLINE_EXCEEDED, while Code prints as DeadlineExceeded.
func (e *Error) CodeName() string { return code.Code(e.Code()).String() }

// Reason returns a reason such as UPSTREAM_RATE_LIMITED, or "".
func (e *Error) Reason() string { return e.Info.GetReason() }

// MappedReason returns the reason to which an error in a 200 response (UPSTREAM_ERROR_BODY) maps, or "".
func (e *Error) MappedReason() string { return e.Info.GetMetadata()["mapped_reason"] }

// Message returns the status's message.
func (e *Error) Message() string { return e.status.Message() }

// GRPCStatus lets status.FromError and status.Code read an Error.
func (e *Error) GRPCStatus() *status.Status { return e.status }

func (e *Error) Error() string {
	if e.Reason() == "" {
		return fmt.Sprintf("%s: %s", e.CodeName(), e.Message())
	}
	return fmt.Sprintf("%s (%s): %s", e.CodeName(), e.Reason(), e.Message())
}

// RequestID returns the x-request-id in the metadata of a call, or "".
func RequestID(md ...metadata.MD) string {
	for _, each := range md {
		if values := each.Get("x-request-id"); len(values) > 0 {
			return values[0]
		}
	}
	return ""
}
