/** Examples of each use of chatrpc. Run it against `make serve`: node build/tour.js */

import { parseArgs } from "node:util";
import { logVerbosity, setLogVerbosity, status } from "@grpc/grpc-js";
import { connect, makeCredentials, type TlsOptions } from "./channel.js";
import {
  ChatError,
  type ChatRequest,
  complete,
  stream as streamed,
} from "./chat.js";
import type { ChatCompletionServiceClient } from "./gen/chatrpc/v1/chat_service.js";

const USAGE =
  "tour [--target HOST:PORT] [--tls] [--ca-file FILE] [--cert FILE --key FILE] [--model NAME] [--image-bytes N] [--timeout SECONDS]";
const HELLO = [{ role: "user", content: "Hello!" }];

interface Flags extends TlsOptions {
  target?: string;
  model: string;
  imageBytes: number;
  timeoutMs: number;
}

type Client = ChatCompletionServiceClient;

async function main(): Promise<number> {
  let flags: Flags;
  try {
    flags = parseFlags(process.argv.slice(2));
  } catch (error) {
    console.error(`chatrpc: ${oneLine(error)}; usage: ${USAGE}`);
    return 2;
  }
  let client: Client | undefined;
  try {
    client = channel(flags);
    await unary(client, flags);
    await stream(client, flags);
    await deadline(client);
    await cancel(client, flags);
    await error(client);
    await tools(client, flags);
    await image(client, flags);
  } catch (failed) {
    console.error(`chatrpc: ${oneLine(failed)}`);
    return 1;
  } finally {
    client?.close();
  }
  return 0;
}

/** Open a channel. channel.ts sets keepalive, round robin, retries and 20 MiB. */
function channel(flags: Flags): Client {
  return connect(credentials(flags), flags.target);
}

/**
 * Choose no TLS, Node's authorities or a CA file, and a client certificate for mTLS. chat.ts reads the API key from
 * CHATRPC_API_KEY.
 */
function credentials(flags: Flags) {
  return makeCredentials(flags);
}

/** Send a request and receive the complete response. */
async function unary(client: Client, { model, timeoutMs }: Flags) {
  const request = { model, messages: HELLO, temperature: 0.2 };
  const response = await complete(client, request, { timeoutMs });
  show("unary", response.choices[0]?.message?.content);
}

/** Receive the response piece by piece. The stream ends without an error only if it is complete. */
async function stream(client: Client, { model, timeoutMs }: Flags) {
  const request = { model, messages: HELLO };
  let tokens = "usage not reported";
  process.stdout.write("stream".padEnd(10));
  const response = streamed(client, request, { timeoutMs });
  for await (const { choices, usage } of response) {
    for (const { index, delta } of choices) {
      if (index === 0 && delta?.content) {
        process.stdout.write(delta.content);
      }
    }
    if (usage) {
      tokens = `${usage.promptTokens} tokens in, ${usage.completionTokens} out`;
    }
  }
  console.log(` (${tokens})`);
}

/** Set a deadline. It applies up to the model: after it, the call stops everywhere. */
async function deadline(client: Client) {
  const request = { model: "echo:delay=30", messages: HELLO };
  const failed = await failure(complete(client, request, { timeoutMs: 300 }));
  show("deadline", status[failed.code]);
}

/** Leave a stream early: this cancels the call, and the model stops. An AbortSignal does the same from elsewhere. */
async function cancel(client: Client, { timeoutMs }: Flags) {
  const request = { model: "echo:pieces=999,pace=0.02", messages: HELLO };
  const received = [];
  for await (const message of streamed(client, request, { timeoutMs })) {
    if (received.push(message) === 3) {
      break;
    }
  }
  show("cancel", `stopped after ${received.length} messages`);
}

/** Read an error: its code, its reason, the time to wait before a retry and the upstream's HTTP status. */
async function error(client: Client) {
  const request = { model: "echo:status=429,retry_after=7", messages: HELLO };
  const failed = await failure(complete(client, request, { timeoutMs: 5000 }));
  const retry =
    failed.retryAfterMs === undefined
      ? ""
      : `, retry in ${failed.retryAfterMs / 1000} s`;
  show(
    "error",
    `${status[failed.code]} ${failed.reason}${retry}, upstream's HTTP status ${failed.upstream?.httpStatus}`,
  );
}

/** Let the model call a function, then send the function's result with the rest of the chat. */
async function tools(client: Client, { model, timeoutMs }: Flags) {
  const parametersJson = JSON.stringify({
    type: "object",
    properties: { city: { type: "string" } },
    required: ["city"],
  });
  const request: ChatRequest = {
    model,
    messages: HELLO,
    tools: [{ function: { name: "weather", parametersJson } }],
  };
  const response = await complete(
    client,
    {
      ...request,
      toolChoice: { choice: { $case: "mode", value: "required" } },
    },
    { timeoutMs },
  );
  const message = response.choices[0]?.message;
  const call = message?.toolCalls[0];
  if (!message || !call?.function) {
    throw new Error(
      "tools: the model called no function; use a model that supports tools",
    );
  }
  const result = { role: "tool", toolCallId: call.id, content: "sunny" };
  await complete(
    client,
    { ...request, messages: [...HELLO, message, result] },
    { timeoutMs },
  );
  show("tools", `${call.function.name}(${call.function.arguments})`);
}

/** Send a picture as a data URL, which can exceed gRPC's default limit of 4 MiB. */
async function image(client: Client, { model, imageBytes, timeoutMs }: Flags) {
  const url = `data:image/png;base64,${Buffer.alloc(imageBytes).toString("base64")}`;
  const request: ChatRequest = {
    model,
    messages: [
      {
        role: "user",
        contentParts: [
          { part: { $case: "text", value: "What is this?" } },
          { part: { $case: "imageUrl", value: { url } } },
        ],
      },
    ],
  };
  const response = await complete(client, request, { timeoutMs });
  show("image", response.choices[0]?.message?.content);
}

/** Return the error of a call that must fail. */
async function failure(call: Promise<unknown>): Promise<ChatError> {
  try {
    await call;
  } catch (error) {
    if (error instanceof ChatError) {
      return error;
    }
    throw error;
  }
  throw new Error(
    "tour: a call that must fail succeeded; run it against `make serve`",
  );
}

function show(name: string, result = "") {
  console.log(name.padEnd(10) + result);
}

function oneLine(error: unknown): string {
  return (error as Error).message.replace(/\s+/g, " ").trim();
}

function parseFlags(args: string[]): Flags {
  const { values } = parseArgs({
    args,
    options: {
      target: { type: "string" },
      tls: { type: "boolean" },
      "ca-file": { type: "string" },
      cert: { type: "string" },
      key: { type: "string" },
      model: { type: "string", default: "echo" },
      "image-bytes": { type: "string", default: String(5 * 1024 * 1024) },
      timeout: { type: "string", default: "60" },
    },
  });
  const imageBytes = Number(values["image-bytes"]);
  const timeoutMs = Number(values.timeout) * 1000;
  if (!/^\d+$/.test(values["image-bytes"])) {
    throw new Error("--image-bytes: invalid; use a number of bytes");
  }
  if ((values.cert === undefined) !== (values.key === undefined)) {
    throw new Error("--cert, --key: one is missing; give both");
  }
  // Because grpc-js throws an uncatchable error if a deadline is too far away.
  if (!(timeoutMs > 0 && timeoutMs < 1e12)) {
    throw new Error(
      "--timeout: invalid; use a number of seconds, more than 0 and below 1e9",
    );
  }
  const { target, tls, model } = values;
  return {
    target,
    tls,
    caFile: values["ca-file"],
    certFile: values.cert,
    keyFile: values.key,
    model,
    imageBytes,
    timeoutMs,
  };
}

// Because grpc-js and Node would write warnings to standard error.
setLogVerbosity(logVerbosity.NONE);
process.noDeprecation = true;
process.exitCode = await main();
