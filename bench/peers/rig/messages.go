package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
)

// The few fields of protos/chatrpc/v1 that the rig writes and reads, by number. Generated code would cost too much,
// because the rig must be much cheaper than the servers.
const (
	requestModel, requestMessages = 1, 2
	messageRole, messageContent   = 1, 2
	answerChoices                 = 5
	choiceMessage, choiceReason   = 2, 3 // of unary responses and of chunks alike, where the message is called delta
	deltaContent                  = 2
)

var (
	prompt       = strings.Repeat("What does the fox say? ", 10)
	grpcRequests sync.Map
)

// requestMessage is a framed CreateChatCompletionRequest.
func requestMessage(model string) []byte {
	if known, ok := grpcRequests.Load(model); ok {
		return known.([]byte)
	}
	message := field(nil, messageRole, []byte("user"))
	message = field(message, messageContent, []byte(prompt))
	body := field(nil, requestModel, []byte(model))
	body = field(body, requestMessages, message)
	framed := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body)))
	framed = append(framed, body...)
	grpcRequests.Store(model, framed)
	return framed
}

func field(to []byte, number int, value []byte) []byte {
	to = binary.AppendUvarint(to, uint64(number)<<3|2)
	to = binary.AppendUvarint(to, uint64(len(value)))
	return append(to, value...)
}

// requestJSON is the same request as an HTTP body.
func requestJSON(model string, stream bool) []byte {
	return fmt.Appendf(nil, `{"model":"%s","messages":[{"role":"user","content":"%s"}],"stream":%t}`, model, prompt, stream)
}

var errMalformed = errors.New("a message that is not well-formed")

// readMessage reads the text and the reason of a response or a chunk.
func readMessage(call *call, data []byte) error {
	return eachField(data, func(number int, choice []byte) error {
		if number != answerChoices {
			return nil
		}
		return eachField(choice, func(number int, value []byte) error {
			switch number {
			case choiceReason:
				call.finished = string(value) == "stop"
			case choiceMessage:
				return eachField(value, func(number int, text []byte) error {
					if number == deltaContent {
						call.text = append(call.text, text...)
					}
					return nil
				})
			}
			return nil
		})
	})
}

// eachField calls back for length-delimited fields and skips numbers.
func eachField(data []byte, found func(number int, value []byte) error) error {
	for len(data) > 0 {
		tag, read := binary.Uvarint(data)
		if read <= 0 {
			return errMalformed
		}
		data = data[read:]
		switch tag & 7 {
		case 0:
			if _, read = binary.Uvarint(data); read <= 0 {
				return errMalformed
			}
			data = data[read:]
		case 1:
			if len(data) < 8 {
				return errMalformed
			}
			data = data[8:]
		case 2:
			size, read := binary.Uvarint(data)
			if read <= 0 || uint64(len(data)-read) < size {
				return errMalformed
			}
			if err := found(int(tag>>3), data[read:read+int(size)]); err != nil {
				return err
			}
			data = data[read+int(size):]
		default:
			return errMalformed
		}
	}
	return nil
}
