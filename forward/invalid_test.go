package forward

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// sorting is a Handler that notes what was valid and what was not.
type sorting struct {
	mu       sync.Mutex
	events   []byte
	count    int
	tag      string
	invalid  []Invalid
	messages int
	refuse   error
}

func (h *sorting) Handle(_ context.Context, m *Message) {
	h.mu.Lock()
	h.messages++
	h.tag = string(m.Tag)
	h.count += m.Events
	p, err := inflate(bytes.Join(m.Payload, nil), m.Compression)
	if err != nil {
		panic(err)
	}
	h.events = append(h.events, p...)
	if in := m.Invalid; in != nil {
		c := *in
		c.Data, c.Tag = bytes.Clone(in.Data), bytes.Clone(in.Tag)
		h.invalid = append(h.invalid, c)
	}
	h.mu.Unlock()
	m.Done(h.refuse)
}

// TestInvalid: what is valid of a message is handed over, the rest as it came,
// the message is acked, and the connection goes on.
func TestInvalid(t *testing.T) {
	option := dict{"chunk": "id"}
	gz := dict{"chunk": "id", "compressed": "gzip"}
	ev := func(vs ...any) []byte { return pack(vs) }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	forward := func(events []byte, n int) []byte { // Forward mode of raw entries
		return join([]byte("\x93\xa1t"), containerHeader(n, false), events, pack(option))
	}
	good := stream(2)
	textTime, list, nilRecord := ev("noon", dict{}), ev(1, []int{1}), ev(1, nil)
	deep := join([]byte("\x92\x01\x81\xa1a"), bytes.Repeat([]byte{0x91}, 100_000), []byte{0xc0})
	cut := stream(1)[:7]
	flipped := gzipped(stream(1000))
	flipped[len(flipped)-6] ^= 1 // of the checksum
	message := func(v ...any) []byte { return pack(v) }
	for _, c := range []struct {
		name   string
		in     []byte
		good   []byte
		count  int
		bad    []byte // nil: the whole message; empty: nothing
		events int    // of bad
		reason string
		noAck  bool
	}{
		{"packed, a time that is text", message("t", join(good, textTime, good), option), join(good, good), 4, textTime, 1, ReasonType, false},
		{"packed, a record that is a list", message("t", join(list, good, textTime), option), good, 2, join(list, textTime), 2, ReasonType, false},
		{"packed, nothing valid", message("t", textTime, option), nil, 0, textTime, 1, ReasonType, false},
		{"packed, cut", message("t", join(good, cut), option), good, 2, cut, 1, ReasonBroken, false},
		{"packed, 4 billion entries claimed", message("t", join(good, []byte("\xdd\xff\xff\xff\xff")), option), good, 2, []byte("\xdd\xff\xff\xff\xff"), 1, ReasonBroken, false},
		{"packed, a byte msgpack never uses", message("t", join(good, []byte("\xc1"), good), option), good, 2, join([]byte("\xc1"), good), 1, ReasonBroken, false},
		{"packed, too deep", message("t", join(good, deep, good), option), join(good, good), 4, deep, 1, ReasonDepth, false},
		{"packed, time of u64 max", message("t", join(good, []byte("\x92\xcf\xff\xff\xff\xff\xff\xff\xff\xff\x80")), option), good, 2, []byte("\x92\xcf\xff\xff\xff\xff\xff\xff\xff\xff\x80"), 1, ReasonType, false},
		{"packed, nil record", message("t", join(nilRecord, good), option), good, 2, []byte{}, 0, "", false},
		{"packed, only nil records", message("t", nilRecord, option), nil, 0, []byte{}, 0, "", false},
		{"gzip, a time that is text", message("t", gzipped(join(good, textTime, good)), gz), join(good, good), 4, textTime, 1, ReasonType, false},
		{"gzip, nil record", message("t", gzipped(join(good, nilRecord)), gz), good, 2, []byte{}, 0, "", false},
		{"zstd, cut event", message("t", zstandard(join(good, cut)), dict{"chunk": "id", "compressed": "zstd"}), good, 2, cut, 1, ReasonBroken, false},
		{"gzip, flipped byte", message("t", flipped, gz), nil, 0, nil, 0, ReasonDecompress, false},
		{"gzip, cut short", message("t", gzipped(stream(1000))[:200], gz), nil, 0, nil, 0, ReasonDecompress, false},
		{"not gzip", message("t", stream(3), gz), nil, 0, nil, 0, ReasonDecompress, false},
		{"gzip bomb", message("t", gzipped(bytes.Repeat(stream(1), 2_000_000)), gz), nil, 0, nil, 0, ReasonInflated, false},
		{"zstd, ratio", message("t", zstandard(make([]byte, 8<<20)), dict{"chunk": "id", "compressed": "zstd"}), nil, 0, nil, 0, ReasonRatio, false},
		{"unknown compression", message("t", stream(3), dict{"chunk": "id", "compressed": "lz4"}), nil, 0, nil, 0, ReasonType, false},
		{"forward, a time that is text", forward(join(good, textTime, good), 5), join(good, good), 4, textTime, 1, ReasonType, false},
		{"forward, too deep", forward(join(deep, good), 3), good, 2, deep, 1, ReasonDepth, false},
		{"forward, nil record", forward(join(good, nilRecord), 3), good, 2, []byte{}, 0, "", false},
		{"forward, entries that are no pairs", forward(join([]byte{7}, good), 3), good, 2, []byte{7}, 1, ReasonType, false},
		{"packed, metrics of Fluent Bit", message("t", pack(dict{"meta": dict{}}), dict{"chunk": "id", "fluent_signal": 1}), nil, 0, pack(dict{"meta": dict{}}), 1, ReasonType, false},
		{"message, a time that is true", message("t", true, dict{"a": 3}, option), nil, 0, nil, 0, ReasonType, false},
		{"message, a record that is text", message("t", 1.5, "text", option), nil, 0, nil, 0, ReasonType, false},
		{"message, nil record", message("t", 1, nil, option), nil, 0, []byte{}, 0, "", false},
		{"message, too deep", join([]byte("\x94\xa1t\x01\x81\xa1a"), bytes.Repeat([]byte{0x91}, 100_000), []byte{0xc0}, pack(option)), nil, 0, nil, 0, ReasonDepth, false},
		{"tag is an integer", message(1, good, option), nil, 0, nil, 0, ReasonType, false},
		{"tag of 1 MB", message(strings.Repeat("x", 1<<20), good, option), nil, 0, nil, 0, ReasonSize, false},
		{"five elements", message("t", 1, dict{}, option, 5), nil, 0, nil, 0, ReasonType, true},
		{"second element is a map", message("t", dict{}, 1), nil, 0, nil, 0, ReasonType, true},
		{"option is text", message("t", good, "option"), good, 2, []byte{}, 0, "", true},
		{"option of 1 MB", message("t", good, dict{"x": strings.Repeat("x", 1<<20), "chunk": "id"}), good, 2, []byte{}, 0, "", false},
		{"option too deep", join([]byte("\x93\xa1t"), pack(good), []byte("\x81\xa1a"), bytes.Repeat([]byte{0x91}, 1000), []byte{0xc0}), good, 2, []byte{}, 0, "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			core, logs := observer.New(zap.WarnLevel)
			h := &sorting{}
			r := serve(t, Config{Handler: h, Log: zap.New(core), DecompressionSizeLimit: 16 << 20, DecompressionRatioLimit: 4000, Quarantine: true})
			next := message("next", good, dict{"chunk": "next"})
			want := "\x81\xa3ack\xa4next"
			if !c.noAck {
				want = ackOfID + want
			}
			if got := r.talk(append(bytes.Clone(c.in), next...)); string(got) != want {
				t.Errorf("answer %q, want %q", got, want)
			}
			if h.tag != "next" || h.count != c.count+2 || string(h.events) != string(c.good)+string(good) {
				t.Errorf("%d events %.100q, want %d", h.count, h.events, c.count+2)
			}
			st := r.Stats()
			if c.reason == "" {
				if len(h.invalid) != 0 {
					t.Errorf("invalid %+v", h.invalid)
				}
				return
			}
			if len(h.invalid) != 1 {
				t.Fatalf("invalid %+v", h.invalid)
			}
			in := h.invalid[0]
			kind := InvalidEvents
			if c.bad == nil {
				c.bad, kind = c.in, InvalidMessage
			}
			if in.Reason != c.reason || in.Kind != kind || in.Events != c.events || !bytes.Equal(in.Data, c.bad) {
				t.Errorf("invalid: %s, %s, %d events, %.100q (%v)", in.Reason, in.Kind, in.Events, in.Data, in.Err)
			}
			if st.InvalidMessages[c.reason] != 1 || st.InvalidEvents != uint64(c.events) || len(st.RefusedMessages) != 0 {
				t.Errorf("stats %+v", st)
			}
			if logs.Len() != 1 || !strings.HasPrefix(fmt.Sprint(logs.All()[0].ContextMap()["sender"]), "127.0.0.1:") {
				t.Errorf("log %+v", logs.All())
			}
			eventually(t, "all memory is given back", func() bool { s := r.Stats(); return s.MemoryHeld == 0 && s.Open == 0 })
		})
	}
}

// TestChunkIDTooLong: what could not be acked is not set aside either, for its
// sender would send it again and again; the connection ends.
func TestChunkIDTooLong(t *testing.T) {
	id := strings.Repeat("c", maxChunk+1)
	for name, in := range map[string][]byte{
		"packed":         pack([]any{"t", stream(1), dict{"chunk": id}}),
		"packed, 1 MB":   pack([]any{"t", stream(1), dict{"chunk": strings.Repeat("c", 1<<20)}}),
		"forward":        pack([]any{"t", []any{[]any{"noon", dict{}}}, dict{"chunk": id}}),
		"message":        pack([]any{"t", "noon", dict{}, dict{"chunk": id}}),
		"JSON":           []byte(`["t",1,{},{"chunk":"` + id + `"}]`),
		"JSON, invalid":  []byte(`["t",true,{},{"chunk":"` + id + `"}]`),
		"JSON, escapes":  []byte(`["t",1,{},{"chunk":"` + strings.Repeat(`\u0041`, maxChunk/5) + `"}]`),
		"tag is integer": pack([]any{1, stream(1), dict{"chunk": id}}),
	} {
		t.Run(name, func(t *testing.T) {
			h := &sorting{}
			r := serve(t, Config{Handler: h, Quarantine: true})
			if got := r.talk(in); len(got) != 0 {
				t.Errorf("answer %.50q", got)
			}
			if st := r.Stats(); h.messages != 0 || st.RefusedMessages[ReasonSize] != 1 || st.MemoryHeld != 0 {
				t.Errorf("%d messages, %+v", h.messages, st)
			}
		})
	}
}

// TestInvalidJSON: the same for JSON.
func TestInvalidJSON(t *testing.T) {
	for _, c := range []struct {
		name, in, answer, bad string
		count                 int
	}{
		{"entries", `["t",[[1,{"a":1}],["noon",{}],[2,null],[3,{}]],{"chunk":"id"}]`, `{"ack":"id"}`, `["t",[["noon",{}]]]`, 2},
		{"message", `["t","noon",{},{"chunk":"id"}]`, `{"ack":"id"}`, `["t","noon",{},{"chunk":"id"}]`, 0},
		{"record with a chunk", `["t","noon",{"chunk":"id"}]`, ``, `["t","noon",{"chunk":"id"}]`, 0},
		{"too many elements", `["t",1,{},{},1,2,{"chunk":"id"}]`, `{"ack":"id"}`, `["t",1,{},{},1,2,{"chunk":"id"}]`, 0},
		{"entries, nothing valid", `["t",[ 1 ,"x"]]`, ``, `["t",[1,"x"]]`, 0},
		{"object", `{"log":"x"}`, ``, `{"log":"x"}`, 0},
		{"nil record", `["t",1,null,{"chunk":"id"}]`, `{"ack":"id"}`, ``, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &sorting{}
			r := serve(t, Config{Handler: h, Quarantine: true})
			if got := r.talk([]byte(c.in + "\n" + `["t",1,{"a":1}]`)); string(got) != c.answer {
				t.Errorf("answer %q, want %q", got, c.answer)
			}
			if h.count != c.count+1 {
				t.Errorf("%d events", h.count)
			}
			bad := ""
			for _, in := range h.invalid {
				bad += string(in.Data)
			}
			if bad != c.bad {
				t.Errorf("invalid %s, want %s", bad, c.bad)
			}
		})
	}
}

// TestJSONHoldsToTheBudget: JSON takes many times its size to convert, within the
// memory budget; what could never fit is refused at once.
func TestJSONHoldsToTheBudget(t *testing.T) {
	const budget = 1 << 20
	h := &sorting{}
	r := serve(t, Config{Handler: h, Quarantine: true, Memory: budget})
	small := `["t",[` + strings.Repeat(`[],`, 10_000) + `[1,{}]],{"chunk":"id"}]`
	if got := r.talk([]byte(small)); string(got) != `{"ack":"id"}` || h.count != 1 || len(h.invalid) != 1 || h.invalid[0].Events != 10_000 {
		t.Errorf("answer %q, %d events, invalid %d", got, h.count, len(h.invalid))
	}
	r.talk([]byte(`["t",[` + strings.Repeat(`[],`, 100_000) + `[1,{}]]]`))
	st := r.Stats()
	if st.RefusedMessages[ReasonSize] != 1 || st.MemoryPeak > budget || st.MemoryHeld != 0 {
		t.Errorf("refused %v, memory %d, peak %d", st.RefusedMessages, st.MemoryHeld, st.MemoryPeak)
	}
}

// TestInvalidWhole: skip_invalid_event false keeps a message together.
func TestInvalidWhole(t *testing.T) {
	h := &sorting{}
	r := serve(t, Config{Handler: h, Quarantine: true, QuarantineWhole: true})
	in := pack([]any{"t", append(stream(2), pack([]any{"noon", dict{}})...), dict{"chunk": "id"}})
	if got := r.talk(in); string(got) != ackOfID {
		t.Errorf("answer %q", got)
	}
	if h.count != 0 || len(h.invalid) != 1 || !bytes.Equal(h.invalid[0].Data, in) {
		t.Errorf("%d events, %+v", h.count, h.invalid)
	}
}

// TestInvalidNotKept: a handler that cannot keep the rest gives no ack.
func TestInvalidNotKept(t *testing.T) {
	h := &sorting{refuse: &Refusal{Reason: "storage", Err: fmt.Errorf("full")}}
	r := serve(t, Config{Handler: h, Quarantine: true})
	if got := r.talk(pack([]any{"t", []byte{7}, dict{"chunk": "id"}})); len(got) != 0 {
		t.Errorf("answer %q", got)
	}
	if st := r.Stats(); st.RefusedMessages["storage"] != 1 || len(st.InvalidMessages) != 0 {
		t.Errorf("stats %+v", st)
	}
}

// TestNilRecords: they are skipped without a quarantine as well.
func TestNilRecords(t *testing.T) {
	for _, in := range [][]byte{
		pack([]any{"t", append(stream(2), pack([]any{1, nil})...), dict{"chunk": "id"}}),
		pack([]any{"t", []any{[]any{1, nil}, []any{1, dict{}}, []any{1, dict{}}}, dict{"chunk": "id"}}),
		pack([]any{"t", 1, nil, dict{"chunk": "id"}}),
	} {
		h := &sorting{}
		r := serve(t, Config{Handler: h})
		if got := r.talk(in); string(got) != ackOfID {
			t.Errorf("answer %q", got)
		}
		if n := r.Stats().NilRecords; n != 1 || h.count != 2 && h.count != 0 {
			t.Errorf("%d nils, %d events", n, h.count)
		}
	}
}

// TestReplayable: what was set aside can be sent again, whatever it was, and
// what has become valid is taken.
func TestReplayable(t *testing.T) {
	deep := append(append([]byte("\x92\x01\x81\xa1a"), bytes.Repeat([]byte{0x91}, 200)...), 0xc0)
	for name, in := range map[string][]byte{
		"events":  pack([]any{"t", append(stream(2), deep...), dict{"chunk": "id"}}),
		"gzip":    pack([]any{"t", gzipped(bytes.Repeat(stream(1), 1000)), dict{"chunk": "id", "compressed": "gzip"}}),
		"message": append([]byte("\x93\xa1t"), deep[1:]...),
	} {
		t.Run(name, func(t *testing.T) {
			h := &sorting{}
			r := serve(t, Config{Handler: h, Quarantine: true, DecompressionSizeLimit: 1000})
			r.talk(in)
			if len(h.invalid) != 1 {
				t.Fatalf("invalid %+v", h.invalid)
			}
			again, err := h.invalid[0].Replayable("new")
			if err != nil {
				t.Fatal(err)
			}
			h2 := &sorting{}
			r2 := serve(t, Config{Handler: h2, Quarantine: true, MaxDepth: 1000})
			if got := r2.talk(again); string(got) != "\x81\xa3ack\xa3new" {
				t.Errorf("answer %q", got)
			}
			if len(h2.invalid) != 0 || h2.count == 0 || h2.tag != "t" {
				t.Errorf("%d events with tag %q, invalid %+v", h2.count, h2.tag, h2.invalid)
			}
		})
	}
	if _, err := (&Invalid{Kind: InvalidMessage, Data: []byte{0x91, 1}}).Replayable("x"); err == nil {
		t.Error("an array of one can be sent again")
	}
}
