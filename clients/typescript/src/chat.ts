/** Calls as promises and async iterables, and their error. */

import {
  type ClientReadableStream,
  type ClientUnaryCall,
  Metadata,
  type ServiceError,
  status,
} from "@grpc/grpc-js";
import { UpstreamError } from "./gen/chatrpc/v1/chat_error.js";
import {
  CreateChatCompletionRequest,
  type DeepPartial,
} from "./gen/chatrpc/v1/chat_request.js";
import type {
  CreateChatCompletionResponse,
  CreateChatCompletionStreamResponse,
} from "./gen/chatrpc/v1/chat_response.js";
import type { ChatCompletionServiceClient } from "./gen/chatrpc/v1/chat_service.js";
import {
  BadRequest,
  ErrorInfo,
  RequestInfo,
  RetryInfo,
} from "./gen/google/rpc/error_details.js";
import { Status } from "./gen/google/rpc/status.js";

export type ChatRequest = DeepPartial<CreateChatCompletionRequest>;

export interface CallOptions {
  /** The deadline from now. It applies up to the model. If Infinity, the service sets its own. */
  timeoutMs: number;
  /** A signal that cancels the call; then the model stops. */
  signal?: AbortSignal;
  /** Metadata of the request, such as `x-request-id`. */
  headers?: Record<string, string>;
  /** A callback for the metadata before the first message: `x-request-id`, `x-ratelimit-*`. */
  onMetadata?: (metadata: Metadata) => void;
}

/** Return the complete response. Rejects with `ChatError`. */
export async function complete(
  client: ChatCompletionServiceClient,
  request: ChatRequest,
  options: CallOptions,
): Promise<CreateChatCompletionResponse> {
  options.signal?.throwIfAborted();
  return new Promise((resolve, reject) => {
    const call = client.createChatCompletion(
      CreateChatCompletionRequest.fromPartial(request),
      makeMetadata(options),
      { deadline: Date.now() + options.timeoutMs },
      (error, response) =>
        error ? reject(new ChatError(error)) : resolve(response),
    );
    watch(call, options);
  });
}

/**
 * Yield the messages of the response. The first read starts the call. Throws `ChatError`, and ends without an error
 * only if the response is complete. Leaving the loop cancels the call.
 */
export async function* stream(
  client: ChatCompletionServiceClient,
  request: ChatRequest,
  options: CallOptions,
): AsyncGenerator<CreateChatCompletionStreamResponse, void, undefined> {
  options.signal?.throwIfAborted();
  const call = client.createChatCompletionStream(
    CreateChatCompletionRequest.fromPartial(request),
    makeMetadata(options),
    { deadline: Date.now() + options.timeoutMs },
  );
  watch(call, options);
  try {
    yield* call as AsyncIterable<CreateChatCompletionStreamResponse>;
  } catch (error) {
    throw new ChatError(error as ServiceError);
  } finally {
    call.cancel();
  }
}

/** Return a call's metadata with the key, because gRPC rejects call credentials without TLS. */
function makeMetadata({ headers = {} }: CallOptions): Metadata {
  const metadata = new Metadata();
  const key = process.env.CHATRPC_API_KEY;
  if (key) {
    // grpc-js rejects such a key too, but its error message contains the key.
    if (!/^[\x20-\x7e]+$/.test(key)) {
      throw new Error(
        "CHATRPC_API_KEY: the key has characters that metadata cannot carry; use printable ASCII only",
      );
    }
    metadata.set("authorization", `Bearer ${key}`);
  }
  for (const [name, value] of Object.entries(headers)) {
    metadata.set(name, value);
  }
  return metadata;
}

function watch(
  call: ClientUnaryCall | ClientReadableStream<unknown>,
  { signal, onMetadata }: CallOptions,
): void {
  if (onMetadata) {
    call.on("metadata", onMetadata);
  }
  const cancel = () => call.cancel();
  signal?.addEventListener("abort", cancel);
  call.on("status", () => signal?.removeEventListener("abort", cancel));
}

/** Return the call's id in the service's logs, or "" if the metadata has none. */
export function readRequestId(metadata: Metadata): string {
  return metadata.get("x-request-id").join();
}

/** The error of a failed call: `CODE (REASON): details`. The reasons are those of chatrpc/v1/chat_error.proto. */
export class ChatError extends Error {
  override readonly name = "ChatError";
  readonly code: status;
  /** The status's message. */
  readonly details: string;
  /** A reason such as `UPSTREAM_RATE_LIMITED`. Empty if gRPC itself made the status. */
  readonly reason: string = "";
  /** For `UPSTREAM_ERROR_BODY`, the reason to which the upstream's error maps. Empty if that is unknown. */
  readonly mappedReason: string = "";
  /** Milliseconds after which a retry may succeed. Unset if the response did not contain a time. */
  readonly retryAfterMs?: number;
  /** The invalid fields of the request: path and description of each. */
  readonly fields: BadRequest["fieldViolations"] = [];
  /** The call's id in the service's logs. Empty if the service was not reached. */
  readonly requestId: string;
  /** The call's id in the upstream's logs. Empty if the upstream sent none. */
  readonly upstreamRequestId: string = "";
  /** The upstream's error. Unset if the upstream did not respond. */
  readonly upstream?: UpstreamError;

  constructor(error: ServiceError) {
    super(error.message, { cause: error });
    this.code = error.code;
    this.details = error.details;
    this.requestId = readRequestId(error.metadata);
    for (const { typeUrl, value } of readDetails(error.metadata)) {
      switch (typeUrl.slice(typeUrl.lastIndexOf("/") + 1)) {
        case "google.rpc.ErrorInfo": {
          const info = ErrorInfo.decode(value);
          this.reason = info.reason;
          this.mappedReason = info.metadata.mapped_reason ?? "";
          break;
        }
        case "google.rpc.RetryInfo": {
          const delay = RetryInfo.decode(value).retryDelay;
          this.retryAfterMs =
            delay && Number(delay.seconds) * 1000 + delay.nanos / 1e6;
          break;
        }
        case "google.rpc.BadRequest":
          this.fields = BadRequest.decode(value).fieldViolations;
          break;
        case "google.rpc.RequestInfo": {
          const { requestId } = RequestInfo.decode(value);
          this.upstreamRequestId =
            requestId === this.requestId ? "" : requestId;
          break;
        }
        case "chatrpc.v1.UpstreamError":
          this.upstream = UpstreamError.decode(value);
          break;
      }
    }
    const reason = this.reason && ` (${this.reason})`;
    this.message = `${status[this.code]}${reason}: ${this.details}`;
  }
}

function readDetails(metadata: Metadata): Status["details"] {
  const [bytes] = metadata.get("grpc-status-details-bin");
  try {
    return bytes ? Status.decode(bytes as Buffer).details : [];
  } catch {
    return []; // details of another service
  }
}
