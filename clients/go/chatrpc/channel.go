// Package chatrpc adds to the generated stubs a channel with settings for chats, and errors with all details that the
// service sends.
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

// gRPC's default uses only the first address of a name; round_robin spreads the calls over all of them. gRPC retries
// before the first message only, because the service sends no headers earlier. A server reports CANCELLED for a call
// that it had not begun when it stopped (grpc/grpc#41785); gRPC never retries a call that the caller cancelled. The
// service itself has already retried every other error worth a retry.
const serviceConfig = `{
	"loadBalancingConfig": [{"round_robin": {}}],
	"methodConfig": [{
		"name": [{"service": "chatrpc.v1.ChatCompletionService"}],
		"retryPolicy": {
			"maxAttempts": 3,
			"initialBackoff": "0.2s",
			"maxBackoff": "2s",
			"backoffMultiplier": 2,
			"retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]
		}
	}]
}`

// NewChannel returns a channel to target, which is host:port, else the variable CHATRPC_TARGET, else 127.0.0.1:50051.
// It connects at the first call. Share one channel and close it. Each call sends the key in CHATRPC_API_KEY.
//
// As transport use insecure.NewCredentials() for plaintext, or credentials.NewTLS(config) with a tls.Config. It trusts the
// system's authorities, unless LoadAuthorities sets RootCAs. For mTLS, set Certificates to one of LoadCertificate.
func NewChannel(target string, transport credentials.TransportCredentials) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(serviceConfig),
		// Because a service config in a TXT record of the name would replace this one.
		grpc.WithDisableServiceConfig(),
		// A model may think for minutes, and middleboxes forget silent connections. The service accepts one ping per 10 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallSendMsgSize(maxMessageBytes),
			grpc.MaxCallRecvMsgSize(maxMessageBytes),
			// gRPC does not retry requests above this size; its default of 256 KiB is too small for pictures.
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

// RequireTransportSecurity returns false because inside a cluster the mesh often does TLS.
func (bearer) RequireTransportSecurity() bool { return false }
