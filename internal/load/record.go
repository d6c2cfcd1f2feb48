package load

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"

	"github.com/vmihailenco/msgpack/v5"
)

// field is one of a record. Its value is a string, []byte (text as it is), int,
// float64, or json.RawMessage out of a sample.
type field struct {
	key   string
	value any
}

// generated is the record of event i, without its id and the text that fills it up.
func generated(i int) []field {
	v := varied(i)
	method, path := one(v, "GET", "GET", "GET", "POST", "PUT", "DELETE"), fmt.Sprintf("/api/v1/items/%d", v.IntN(10_000))
	status, host := one(v, 200, 200, 200, 201, 304, 404, 500), fmt.Sprintf("www%d.example.com", v.IntN(10))
	level, took := one(v, "info", "info", "info", "warn", "error"), float64(v.IntN(1000))/1000
	return []field{{"host", host}, {"level", level}, {"method", method}, {"path", path}, {"status", status}, {"took", took}}
}

// varied is the same stream of numbers for event i each time.
func varied(i int) *rand.Rand { return rand.New(rand.NewPCG(uint64(i), 0)) }

func one[T any](v *rand.Rand, of ...T) T { return of[v.IntN(len(of))] }

// filler is text of event i that compresses about as well as log lines do: words,
// and here and there a number or an id. JSON needs no escapes for it.
func filler(n, i int) []byte {
	v := varied(i + 1<<32)
	b := make([]byte, 0, n+16)
	for len(b) < n {
		switch v.IntN(8) {
		case 0:
			b = strconv.AppendUint(b, v.Uint64N(100_000), 10)
		case 1:
			b = fmt.Appendf(b, "%08x", v.Uint32())
		default:
			b = append(b, one(v, "user", "session", "request", "upstream", "timeout", "connection", "accepted", "cache", "miss",
				"for", "item", "in", "region", "eu-west", "retry", "backend")...)
		}
		b = append(b, ' ')
	}
	return b[:n]
}

// appendFields appends the fields as msgpack, without a header for the map.
func appendFields(b []byte, fields []field) ([]byte, error) {
	out := bytes.NewBuffer(b)
	enc := msgpack.NewEncoder(out)
	enc.UseCompactInts(true)
	for _, f := range fields {
		if err := enc.EncodeString(f.key); err != nil {
			return nil, err
		}
		var err error
		switch v := f.value.(type) {
		case json.RawMessage:
			err = encodeJSON(enc, v)
		case []byte: // of lines, whose bytes need not be UTF-8
			err = enc.EncodeString(string(v))
		default:
			err = enc.Encode(v)
		}
		if err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// encodeJSON encodes a JSON value: the order of keys stays, and whole numbers stay
// whole.
func encodeJSON(enc *msgpack.Encoder, raw json.RawMessage) error {
	switch raw[0] {
	case '{':
		fields, ok := parseObject(raw)
		if !ok {
			return fmt.Errorf("no object: %.40s", raw)
		}
		if err := enc.EncodeMapLen(len(fields)); err != nil {
			return err
		}
		for _, f := range fields {
			if err := enc.EncodeString(f.key); err != nil {
				return err
			}
			if err := encodeJSON(enc, f.value.(json.RawMessage)); err != nil {
				return err
			}
		}
		return nil
	case '[':
		var list []json.RawMessage
		if err := json.Unmarshal(raw, &list); err != nil {
			return err
		}
		if err := enc.EncodeArrayLen(len(list)); err != nil {
			return err
		}
		for _, v := range list {
			if err := encodeJSON(enc, v); err != nil {
				return err
			}
		}
		return nil
	case '"', 't', 'f', 'n':
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			return err
		}
		return enc.Encode(v)
	}
	if n, err := strconv.ParseInt(string(raw), 10, 64); err == nil {
		return enc.EncodeInt(n)
	}
	if n, err := strconv.ParseUint(string(raw), 10, 64); err == nil {
		return enc.EncodeUint(n)
	}
	v, err := strconv.ParseFloat(string(raw), 64)
	if err != nil && v == 0 { // past the range it is infinite, which msgpack knows
		return err
	}
	return enc.EncodeFloat64(v)
}

// parseObject reads one JSON object, its fields in their order and as they are.
func parseObject(text []byte) ([]field, bool) {
	if !json.Valid(text) {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, false
	}
	var fields []field
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, false
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, false
		}
		fields = append(fields, field{key.(string), raw})
	}
	return fields, true
}
