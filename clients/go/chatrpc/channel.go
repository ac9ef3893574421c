// Package chatrpc is what a caller of chatrpc needs beside the generated stubs: a channel that is set up for chats, and
// errors with all that the service says about them.
package chatrpc

import (
	"cmp"
	"context"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

const (
	defaultTarget   = "127.0.0.1:50051"
	maxMessageBytes = 20 << 20
)

// gRPC's default stays with the first address of a name; round_robin spreads the calls over all of them. Only
// UNAVAILABLE is tried again: all else the service has tried again already, where that was any use.
const serviceConfig = `{
	"loadBalancingConfig": [{"round_robin": {}}],
	"methodConfig": [{
		"name": [{"service": "chatrpc.v1.ChatCompletionService"}],
		"retryPolicy": {
			"maxAttempts": 3,
			"initialBackoff": "0.2s",
			"maxBackoff": "2s",
			"backoffMultiplier": 2,
			"retryableStatusCodes": ["UNAVAILABLE"]
		}
	}]
}`

// NewChannel sets up a channel to target, which is host:port, else the variable CHATRPC_TARGET, else 127.0.0.1:50051.
// It connects at the first call; share one, and close it. The key in CHATRPC_API_KEY goes along with each call.
//
// As transport take insecure.NewCredentials() for plaintext, credentials.NewTLS(nil) to trust the system's authorities,
// or credentials.NewClientTLSFromFile(file, "") to trust those in a file.
func NewChannel(target string, transport credentials.TransportCredentials) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(serviceConfig),
		// Else a TXT record of the name is asked for, and could take this one's place.
		grpc.WithDisableServiceConfig(),
		// A model may think for minutes, and middleboxes forget what is silent. The service takes a ping each 10 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallSendMsgSize(maxMessageBytes),
			grpc.MaxCallRecvMsgSize(maxMessageBytes),
			// Requests above gRPC's own 256 KiB, such as pictures, would not be tried again.
			grpc.MaxRetryRPCBufferSize(maxMessageBytes),
		),
	}
	if key := os.Getenv("CHATRPC_API_KEY"); key != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(key)))
	}
	return grpc.NewClient(cmp.Or(target, os.Getenv("CHATRPC_TARGET"), defaultTarget), options...)
}

type bearer string

func (key bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(key)}, nil
}

// RequireTransportSecurity says no because inside a cluster TLS is often left to the mesh.
func (bearer) RequireTransportSecurity() bool { return false }
