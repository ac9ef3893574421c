/** Calls as promises and async iterables, and the error that they end with. */

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
  /** The deadline, from now. It binds up to the model. Infinity: the service sets its own. */
  timeoutMs: number;
  /** Cancels the call, and the model stops. */
  signal?: AbortSignal;
  /** Metadata to send along, such as `x-request-id`. */
  headers?: Record<string, string>;
  /** Gets the metadata that comes before the answer: `x-request-id`, `x-ratelimit-*`. */
  onMetadata?: (metadata: Metadata) => void;
}

/** The whole answer. Rejects with `ChatError`. */
export async function complete(
  client: ChatCompletionServiceClient,
  request: ChatRequest,
  options: CallOptions,
): Promise<CreateChatCompletionResponse> {
  options.signal?.throwIfAborted();
  return new Promise((resolve, reject) => {
    const call = client.createChatCompletion(
      CreateChatCompletionRequest.fromPartial(request),
      metadataOf(options),
      { deadline: Date.now() + options.timeoutMs },
      (error, answer) =>
        error ? reject(new ChatError(error)) : resolve(answer),
    );
    follow(call, options);
  });
}

/**
 * The answer as it comes; the call begins with the first read. Throws `ChatError`, and ends without only if the answer
 * is whole. Leaving the loop cancels the call.
 */
export async function* stream(
  client: ChatCompletionServiceClient,
  request: ChatRequest,
  options: CallOptions,
): AsyncGenerator<CreateChatCompletionStreamResponse, void, undefined> {
  options.signal?.throwIfAborted();
  const call = client.createChatCompletionStream(
    CreateChatCompletionRequest.fromPartial(request),
    metadataOf(options),
    { deadline: Date.now() + options.timeoutMs },
  );
  follow(call, options);
  try {
    yield* call as AsyncIterable<CreateChatCompletionStreamResponse>;
  } catch (error) {
    throw new ChatError(error as ServiceError);
  } finally {
    call.cancel();
  }
}

/** The key goes with each call: gRPC's own call credentials are refused without TLS. */
function metadataOf({ headers = {} }: CallOptions): Metadata {
  const metadata = new Metadata();
  const key = process.env.CHATRPC_API_KEY;
  if (key) {
    // grpc-js refuses such a key too, but with the key in its message.
    if (!/^[\x20-\x7e]+$/.test(key)) {
      throw new Error(
        "CHATRPC_API_KEY has characters that metadata cannot carry",
      );
    }
    metadata.set("authorization", `Bearer ${key}`);
  }
  for (const [name, value] of Object.entries(headers)) {
    metadata.set(name, value);
  }
  return metadata;
}

function follow(
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

/** The service's name for a call, in its logs. Empty: there is none in this metadata. */
export function requestIdOf(metadata: Metadata): string {
  return metadata.get("x-request-id").join();
}

/** A call that failed. Its message is `CODE (REASON): details`. The reasons stand in chatrpc/v1/chat_error.proto. */
export class ChatError extends Error {
  override readonly name = "ChatError";
  readonly code: status;
  /** What went wrong, in words. */
  readonly details: string;
  /** Such as `UPSTREAM_RATE_LIMITED`. Empty if the status is of gRPC itself. */
  readonly reason: string = "";
  /** For `UPSTREAM_ERROR_BODY` what the upstream's error amounts to, if it is known. */
  readonly mappedReason: string = "";
  /** After this time another try may succeed. Unset: nobody said. */
  readonly retryAfterMs?: number;
  /** What is wrong with the request: the field's path, and what would be right. */
  readonly fields: BadRequest["fieldViolations"] = [];
  /** The call's name in the logs of the service. Empty if the service was not reached. */
  readonly requestId: string;
  /** The call's name in the logs of the upstream. Empty: it gave none. */
  readonly upstreamRequestId: string = "";
  /** What the upstream said. Unset: it did not answer. */
  readonly upstream?: UpstreamError;

  constructor(error: ServiceError) {
    super(error.message, { cause: error });
    this.code = error.code;
    this.details = error.details;
    this.requestId = requestIdOf(error.metadata);
    for (const { typeUrl, value } of detailsOf(error.metadata)) {
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

function detailsOf(metadata: Metadata): Status["details"] {
  const [bytes] = metadata.get("grpc-status-details-bin");
  try {
    return bytes ? Status.decode(bytes as Buffer).details : [];
  } catch {
    return []; // somebody else's
  }
}
