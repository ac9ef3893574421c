package main

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A script is the behaviour of a model. Its name is bench-<chunks>-<pace in ms>: that many events with a choice at that
// pace, the first with the role, the last with the finish reason. Without a pace they are written as fast as possible,
// one write each. bench-hold sends the first chunk and then nothing; bench-silent not even headers.
type script struct {
	chunks int
	pace   time.Duration
	hold   bool
	silent bool
	events [][]byte // each an HTTP chunk
	usage  []byte
	text   string // the complete text that the caller must receive
}

const (
	answerText = "The quick brown fox jumps over the lazy dog. "
	created    = 1700000000
	streamHead = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)

var (
	scripts   sync.Map
	unaryText = strings.Repeat(answerText, 12)
	unaryBody = func() []byte {
		body := fmt.Sprintf(`{"id":"chatcmpl-bench0123456789abcdefghij","object":"chat.completion","created":%d,"model":"bench",`+
			`"choices":[{"index":0,"message":{"role":"assistant","content":"%s","refusal":null},"logprobs":null,"finish_reason":"stop"}],`+
			`"usage":{"prompt_tokens":60,"completion_tokens":120,"total_tokens":180},"system_fingerprint":"fp_bench"}`, created, unaryText)
		return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
	}()
	streamEnd = append(httpChunk("data: [DONE]\n\n"), "0\r\n\r\n"...)
)

func scriptFor(model string) *script {
	if known, ok := scripts.Load(model); ok {
		return known.(*script)
	}
	made := newScript(model)
	scripts.Store(model, made)
	return made
}

func newScript(model string) *script {
	made := &script{chunks: 3, hold: model == "bench-hold", silent: model == "bench-silent"}
	if parts := strings.Split(model, "-"); len(parts) == 3 && parts[0] == "bench" {
		chunks, _ := strconv.Atoi(parts[1])
		pace, _ := strconv.Atoi(parts[2])
		made.chunks, made.pace = max(chunks, 3), time.Duration(pace)*time.Millisecond
	}
	var text strings.Builder
	made.events = append(made.events, event(`{"role":"assistant","content":"","refusal":null}`, "null"))
	for number := 1; number < made.chunks-1; number++ {
		word := fmt.Sprintf(" word%d", number%10)
		text.WriteString(word)
		made.events = append(made.events, event(`{"content":"`+word+`"}`, "null"))
	}
	made.events = append(made.events, event(`{}`, `"stop"`))
	made.text = text.String()
	made.usage = httpChunk(`data: {"id":"chatcmpl-bench0123456789abcdefghij","object":"chat.completion.chunk","created":1700000000,` +
		`"model":"bench","system_fingerprint":"fp_bench","choices":[],` +
		fmt.Sprintf(`"usage":{"prompt_tokens":60,"completion_tokens":%d,"total_tokens":%d}}`, made.chunks, made.chunks+60) + "\n\n")
	return made
}

func event(delta, finishReason string) []byte {
	return httpChunk(fmt.Sprintf(`data: {"id":"chatcmpl-bench0123456789abcdefghij","object":"chat.completion.chunk","created":%d,"model":"bench",`+
		`"system_fingerprint":"fp_bench","choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}]}`+"\n\n", created, delta, finishReason))
}

func httpChunk(data string) []byte {
	return fmt.Appendf(nil, "%x\r\n%s\r\n", len(data), data)
}
