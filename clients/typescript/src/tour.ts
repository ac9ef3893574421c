/** What one does with chatrpc, one thing after the other. Against `make serve`: node build/tour.js */

import { parseArgs } from "node:util";
import { logVerbosity, setLogVerbosity, status } from "@grpc/grpc-js";
import { connect, credentialsOf, type Trust } from "./channel.js";
import {
  ChatError,
  type ChatRequest,
  complete,
  stream as streamed,
} from "./chat.js";
import type { ChatCompletionServiceClient } from "./gen/chatrpc/v1/chat_service.js";

const USAGE =
  "tour [--target HOST:PORT] [--tls] [--ca-file FILE] [--model NAME] [--image-bytes N] [--timeout SECONDS]";
const HELLO = [{ role: "user", content: "Hello!" }];

interface Flags extends Trust {
  target?: string;
  model: string;
  imageBytes: number;
  timeoutMs: number;
}

type Client = ChatCompletionServiceClient;

async function main(): Promise<number> {
  let flags: Flags;
  try {
    flags = flagsOf(process.argv.slice(2));
  } catch (wrong) {
    console.error(`chatrpc: ${oneLine(wrong)}; usage: ${USAGE}`);
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

/** Keepalive, round robin, retries and 20 MiB: see channel.ts. */
function channel(flags: Flags): Client {
  return connect(credentials(flags), flags.target);
}

/** TLS: not at all, by Node's authorities, or by a file's. The key comes from CHATRPC_API_KEY by itself: see chat.ts. */
function credentials(flags: Flags) {
  return credentialsOf(flags);
}

/** One question, one answer. */
async function unary(client: Client, { model, timeoutMs }: Flags) {
  const request = { model, messages: HELLO, temperature: 0.2 };
  const answer = await complete(client, request, { timeoutMs });
  show("unary", answer.choices[0]?.message?.content);
}

/** The same, piece by piece. It ends without an exception only if the answer is whole. */
async function stream(client: Client, { model, timeoutMs }: Flags) {
  const request = { model, messages: HELLO };
  let tokens = "no usage told";
  process.stdout.write("stream".padEnd(10));
  const answer = streamed(client, request, { timeoutMs });
  for await (const { choices, usage } of answer) {
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

/** It binds up to the model: what is not there in time is given up, everywhere. */
async function deadline(client: Client) {
  const request = { model: "echo:delay=30", messages: HELLO };
  const late = await failure(complete(client, request, { timeoutMs: 300 }));
  show("deadline", status[late.code]);
}

/** Leaving the stream cancels the call, and the model stops. An AbortSignal does so from elsewhere. */
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

/** The status says what kind of failure it is, its details which one, and what can be done. */
async function error(client: Client) {
  const request = { model: "echo:status=429,retry_after=7", messages: HELLO };
  const failed = await failure(complete(client, request, { timeoutMs: 5000 }));
  const again =
    failed.retryAfterMs === undefined
      ? ""
      : `, again in ${failed.retryAfterMs / 1000} s`;
  show(
    "error",
    `${status[failed.code]} ${failed.reason}${again}, upstream's HTTP status ${failed.upstream?.httpStatus}`,
  );
}

/** The model asks for a function to be called; what it returned goes back with the rest of the chat. */
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
  const answer = await complete(
    client,
    {
      ...request,
      toolChoice: { choice: { $case: "mode", value: "required" } },
    },
    { timeoutMs },
  );
  const asked = answer.choices[0]?.message;
  const call = asked?.toolCalls[0];
  if (!asked || !call?.function) {
    throw new Error("the model called no function");
  }
  const result = { role: "tool", toolCallId: call.id, content: "sunny" };
  await complete(
    client,
    { ...request, messages: [...HELLO, asked, result] },
    { timeoutMs },
  );
  show("tools", `${call.function.name}(${call.function.arguments})`);
}

/** A picture goes as a data URL. gRPC's usual limit, 4 MiB, would be too little for it. */
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
  const answer = await complete(client, request, { timeoutMs });
  show("image", answer.choices[0]?.message?.content);
}

/** The error of a call that is to fail. */
async function failure(call: Promise<unknown>): Promise<ChatError> {
  try {
    await call;
  } catch (error) {
    if (error instanceof ChatError) {
      return error;
    }
    throw error;
  }
  throw new Error("a call that was to fail did not");
}

function show(name: string, what = "") {
  console.log(name.padEnd(10) + what);
}

function oneLine(error: unknown): string {
  return (error as Error).message.replace(/\s+/g, " ").trim();
}

function flagsOf(args: string[]): Flags {
  const { values } = parseArgs({
    args,
    options: {
      target: { type: "string" },
      tls: { type: "boolean" },
      "ca-file": { type: "string" },
      model: { type: "string", default: "echo" },
      "image-bytes": { type: "string", default: String(5 * 1024 * 1024) },
      timeout: { type: "string", default: "60" },
    },
  });
  const imageBytes = Number(values["image-bytes"]);
  const timeoutMs = Number(values.timeout) * 1000;
  if (!/^\d+$/.test(values["image-bytes"])) {
    throw new Error("--image-bytes is a number of bytes");
  }
  // grpc-js throws where nobody can catch it if a deadline is too far away.
  if (!(timeoutMs > 0 && timeoutMs < 1e12)) {
    throw new Error(
      "--timeout is a number of seconds, more than 0 and below 1e9",
    );
  }
  const { target, tls, model } = values;
  return {
    target,
    tls,
    caFile: values["ca-file"],
    model,
    imageBytes,
    timeoutMs,
  };
}

// Else grpc-js and Node write warnings of their own to standard error.
setLogVerbosity(logVerbosity.NONE);
process.noDeprecation = true;
process.exitCode = await main();
