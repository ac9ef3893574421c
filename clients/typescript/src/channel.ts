/**
 * Channel settings for chats.
 *
 * - **Round robin** over all addresses of the name. gRPC's default is the first address only.
 * - **Retry of UNAVAILABLE and CANCELLED**, by gRPC and only before the first message: the service sends no headers
 *   earlier. A server reports CANCELLED for a call that it had not begun when it stopped (grpc/grpc#41785); gRPC never
 *   retries a call that the caller cancelled. The service itself has already retried every other error worth a retry.
 * - **Keepalive** while calls run, because a model may think for minutes and middleboxes forget silent connections.
 * - **20 MiB** per message, the service's own limit; gRPC's default of 4 MiB is too small for pictures.
 */

import { createPrivateKey, X509Certificate } from "node:crypto";
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
        retryableStatusCodes: ["UNAVAILABLE", "CANCELLED"],
      },
    },
  ],
};
const OPTIONS: ChannelOptions = {
  "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
  // Because a service config in a TXT record of the name would replace this one.
  "grpc.service_config_disable_resolution": 1,
  // The service accepts one ping per 10 s and closes the connection if pings come more often.
  "grpc.keepalive_time_ms": 30_000,
  "grpc.keepalive_timeout_ms": 10_000,
  "grpc.keepalive_permit_without_calls": 0,
  "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
  "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
  // grpc-js can retry only a buffered request, and its default of 1 MiB is too small for pictures.
  "grpc.per_rpc_retry_buffer_size": MAX_MESSAGE_BYTES,
  "grpc.retry_buffer_size": 10 * MAX_MESSAGE_BYTES,
};

export interface TlsOptions {
  /** Use TLS and trust the authorities that Node trusts. */
  tls?: boolean;
  /** Use TLS and trust the authorities in this PEM file. */
  caFile?: string;
  /** Use TLS and present the client certificate in this PEM file (mTLS). Needs `keyFile`. */
  certFile?: string;
  /** The PEM file of the certificate's key. */
  keyFile?: string;
}

/** Return the credentials for these files. Throws if a file cannot be read or is invalid. */
export function makeCredentials({
  tls,
  caFile,
  certFile,
  keyFile,
}: TlsOptions): ChannelCredentials {
  if ((certFile === undefined) !== (keyFile === undefined)) {
    throw new Error("certFile, keyFile: one is missing; give both");
  }
  const authorities = caFile === undefined ? null : readCertificate(caFile);
  if (certFile !== undefined && keyFile !== undefined) {
    const certificate = readCertificate(certFile);
    const key = readKey(keyFile, new X509Certificate(certificate));
    return ChannelCredentials.createSsl(authorities, key, certificate);
  }
  return tls || authorities
    ? ChannelCredentials.createSsl(authorities)
    : ChannelCredentials.createInsecure();
}

/** Read certificates. Node would accept a CA file without certificates and then trust no server. */
function readCertificate(file: string): Buffer {
  return read(file, "no certificate", "use a PEM file", (pem) => {
    new X509Certificate(pem);
  });
}

function readKey(file: string, certificate: X509Certificate): Buffer {
  const remedy = "use the certificate's unencrypted key in a PEM file";
  return read(file, "invalid key", remedy, (pem) => {
    if (!certificate.checkPrivateKey(createPrivateKey(pem))) {
      throw new Error("the certificate has another key");
    }
  });
}

/** Read a PEM file and check it, so that an error names the file. */
function read(
  file: string,
  problem: string,
  remedy: string,
  check: (pem: Buffer) => void,
): Buffer {
  try {
    const pem = readFileSync(file);
    check(pem);
    return pem;
  } catch (error) {
    const { message } = error as Error;
    throw new Error(`${file}: ${problem}: ${message}; ${remedy}`, {
      cause: error,
    });
  }
}

/**
 * Open a channel to `target`: host:port, else the variable CHATRPC_TARGET, else 127.0.0.1:50051. Share one client and
 * close it.
 */
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
