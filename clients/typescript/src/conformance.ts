/** The TypeScript driver of clients/conformance: reads one call per line, writes one result per line. */

import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { status } from "@grpc/grpc-js";
import { connect, makeCredentials } from "./channel.js";
import {
  type CallOptions,
  ChatError,
  complete,
  readRequestId,
  stream,
} from "./chat.js";
import { CreateChatCompletionRequest } from "./gen/chatrpc/v1/chat_request.js";
import {
  CreateChatCompletionResponse,
  CreateChatCompletionStreamResponse,
} from "./gen/chatrpc/v1/chat_response.js";
import type { ChatCompletionServiceClient } from "./gen/chatrpc/v1/chat_service.js";

interface Call {
  name: string;
  method: "CreateChatCompletion" | "CreateChatCompletionStream";
  request: string;
  metadata: Record<string, string>;
  timeout_ms: number;
  cancel_after?: number;
  cancel_after_ms?: number;
  pause_ms?: number;
}

async function makeCall(client: ChatCompletionServiceClient, call: Call) {
  const messages: string[] = [];
  let requestId = "";
  let failed: ChatError | undefined;
  const cancellation = new AbortController();
  const options: CallOptions = {
    timeoutMs: call.timeout_ms || Infinity,
    signal: cancellation.signal,
    headers: call.metadata,
    onMetadata: (metadata) => {
      requestId = readRequestId(metadata);
    },
  };
  if (call.cancel_after_ms) {
    setTimeout(() => cancellation.abort(), call.cancel_after_ms);
  }
  try {
    for await (const message of responses(client, call, options)) {
      messages.push(Buffer.from(message).toString("base64"));
      if (messages.length === call.cancel_after) {
        cancellation.abort();
      }
    }
  } catch (error) {
    if (!(error instanceof ChatError)) {
      throw error;
    }
    failed = error;
  }
  return {
    name: call.name,
    code: status[failed?.code ?? status.OK],
    message: failed?.details ?? "",
    reason: failed?.reason ?? "",
    mapped_reason: failed?.mappedReason ?? "",
    retry_after_ms: failed?.retryAfterMs ?? null,
    fields:
      failed?.fields.map(({ field, description }) => [field, description]) ??
      [],
    upstream_status: failed?.upstream?.httpStatus ?? null,
    request_id: requestId || (failed?.requestId ?? ""),
    messages,
  };
}

/** Yield the decoded messages, encoded again. */
async function* responses(
  client: ChatCompletionServiceClient,
  call: Call,
  options: CallOptions,
): AsyncGenerator<Uint8Array, void, undefined> {
  const request = CreateChatCompletionRequest.decode(
    Buffer.from(call.request, "base64"),
  );
  if (call.method === "CreateChatCompletion") {
    const response = await complete(client, request, options);
    yield CreateChatCompletionResponse.encode(response).finish();
    return;
  }
  for await (const message of stream(client, request, options)) {
    yield CreateChatCompletionStreamResponse.encode(message).finish();
    await sleep(call.pause_ms);
  }
}

async function main(): Promise<number> {
  const [target, ...more] = process.argv.slice(2);
  if (!target || more.length) {
    console.error("usage: conformance HOST:PORT < calls");
    return 2;
  }
  const client = connect(makeCredentials({}), target);
  try {
    for await (const line of createInterface({ input: process.stdin })) {
      console.log(
        JSON.stringify(await makeCall(client, JSON.parse(line) as Call)),
      );
    }
  } catch (error) {
    console.error(`conformance: ${(error as Error).message}`);
    return 1;
  } finally {
    client.close();
  }
  return 0;
}

process.exitCode = await main();
