/**
 * How a channel to chatrpc is set up.
 *
 * - **Round robin** over all addresses of the name. gRPC's default stays with the first.
 * - **Retry of UNAVAILABLE only**, and only before the first message. All else the service has tried again already.
 * - **Keepalive** while calls run. A model may think for minutes, and middleboxes forget what is silent.
 * - **20 MiB** a message, as the service takes. gRPC's own 4 MiB are too few for pictures.
 */

import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { ChannelCredentials, type ChannelOptions } from "@grpc/grpc-js";
import { ChatCompletionServiceClient } from "./gen/chatrpc/v1/chat_service.js";

export const DEFAULT_TARGET = "127.0.0.1:50051";

const MAX_MESSAGE_BYTES = 20 * 1024 * 1024;
const SERVICE_CONFIG = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: ChatCompletionServiceClient.serviceName }],
      retryPolicy: {
        maxAttempts: 3,
        initialBackoff: "0.2s",
        maxBackoff: "2s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
};
const OPTIONS: ChannelOptions = {
  "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
  // Else each look-up of the name also asks DNS for a service config, which would win over this one.
  "grpc.service_config_disable_resolution": 1,
  // The service takes a ping each 10 s. More often it ends the connection.
  "grpc.keepalive_time_ms": 30_000,
  "grpc.keepalive_timeout_ms": 10_000,
  "grpc.keepalive_permit_without_calls": 0,
  "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
  "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
  // Only what fits is tried again, and grpc-js keeps but 1 MiB of a call.
  "grpc.per_rpc_retry_buffer_size": MAX_MESSAGE_BYTES,
  "grpc.retry_buffer_size": 10 * MAX_MESSAGE_BYTES,
};

export interface Trust {
  /** TLS by the authorities that Node trusts. */
  tls?: boolean;
  /** TLS by the authorities in this PEM file. */
  caFile?: string;
}

/** Throws if the file cannot be read, or holds no certificate. */
export function credentialsOf({ tls, caFile }: Trust): ChannelCredentials {
  if (caFile) {
    return ChannelCredentials.createSsl(authoritiesIn(caFile));
  }
  return tls
    ? ChannelCredentials.createSsl()
    : ChannelCredentials.createInsecure();
}

/** Node would take a file without certificates, and then trust nobody. */
function authoritiesIn(file: string): Buffer {
  try {
    const pem = readFileSync(file);
    new X509Certificate(pem);
    return pem;
  } catch (error) {
    const { message } = error as Error;
    throw new Error(`no certificate can be read from ${file}: ${message}`, {
      cause: error,
    });
  }
}

/** `target` is host:port, else the variable CHATRPC_TARGET, else 127.0.0.1:50051. Share one client, and close it. */
export function connect(
  credentials: ChannelCredentials,
  target?: string,
): ChatCompletionServiceClient {
  return new ChatCompletionServiceClient(
    target || process.env.CHATRPC_TARGET || DEFAULT_TARGET,
    credentials,
    OPTIONS,
  );
}
