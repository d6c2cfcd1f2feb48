package forward

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
)

// injection adds the sender's address and name to every record
// (source_address_key, source_hostname_key). A field of that name which the
// record has already is replaced, as in_forward does it.
type injection struct {
	keys   [][]byte // contents
	fields []byte   // the pairs, encoded
}

// add puts a field to those that are added.
func (in *injection) add(key, value string) {
	if key == "" {
		return
	}
	in.keys = append(in.keys, []byte(key))
	in.fields = appendStr(appendStr(in.fields, key), value)
}

// appendStr appends a msgpack str.
func appendStr(dst []byte, s string) []byte {
	switch n := len(s); {
	case n < 32:
		dst = append(dst, 0xa0|byte(n))
	case n < 1<<8:
		dst = append(dst, 0xd9, byte(n))
	default:
		dst = binary.BigEndian.AppendUint32(append(dst, 0xdb), uint32(n))
	}
	return append(dst, s...)
}

// appendStream appends the events of the checked stream p with the fields.
func (in *injection) appendStream(dst, p []byte) ([]byte, error) {
	for len(p) > 0 {
		n, out, err := in.appendEvent(dst, p)
		if err != nil {
			return dst, err
		}
		dst, p = out, p[n:]
	}
	return dst, nil
}

// appendEvent appends the first event of p and returns its length in p.
func (in *injection) appendEvent(dst, p []byte) (n int, out []byte, err error) {
	_, record, err := ParseEventHead(p)
	if err != nil {
		return 0, dst, err
	}
	out = append(dst, p[:record]...)
	pairs, head, ok := mapHeader(p[record:])
	if !ok {
		return 0, dst, errRecord
	}
	// The count is known at the end only: the longest header is written first.
	count := len(out) + 1
	out = append(out, 0xdf, 0, 0, 0, 0)
	n = record + head
	kept := uint32(0)
	for range pairs {
		start := n
		replaced := in.replaces(p[n:])
		for range 2 {
			size, err := Skip(p[n:])
			if err != nil {
				return 0, dst, err
			}
			n += size
		}
		if !replaced {
			out = append(out, p[start:n]...)
			kept++
		}
	}
	out = append(out, in.fields...)
	binary.BigEndian.PutUint32(out[count:], kept+uint32(len(in.keys)))
	return n, out, nil
}

// replaces reports whether the pair at the start of p has one of the keys.
func (in *injection) replaces(p []byte) bool {
	size, head, ok := stringHeader(p)
	if !ok || uint64(len(p)-head) < size {
		return false
	}
	for _, key := range in.keys {
		if bytes.Equal(p[head:head+int(size)], key) {
			return true
		}
	}
	return false
}

// recompress reads a compressed payload that has been checked and returns it
// with the fields, as gzip. It holds a window of the events at a time, or one
// event that is longer; reserve is asked for the bytes that one takes.
func (f *inflater) recompress(in *injection, payload []byte, c Compression, reserve func(n int64) error) ([]byte, error) {
	var out bytes.Buffer
	zip, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	w, err := f.open(payload, c)
	if err != nil {
		return nil, err
	}
	defer f.close(w, c)
	var pending, text []byte
	enough := 0   // bytes with which an event that was cut is tried again
	reserved := 0 // for pending, and as many for text
	for eof := false; !eof; {
		p, err := w.text.Next(0)
		if need := len(pending) + len(p); need > max(reserved, inflateWindow) {
			if err := reserve(int64(need)*4 - int64(reserved)*2); err != nil { // for twice the length of both
				return nil, err
			}
			reserved = need * 2
		}
		pending = append(pending, p...)
		if eof = err == io.EOF; err != nil && !eof {
			return nil, fmt.Errorf("%v payload: %w", c, err)
		}
		if len(pending) < enough && !eof {
			continue
		}
		used := 0
		for text = text[:0]; used < len(pending); {
			var n int
			if n, text, err = in.appendEvent(text, pending[used:]); err != nil {
				break // cut: the rest comes with the next windows
			}
			used += n
		}
		if _, err := zip.Write(text); err != nil {
			return nil, err
		}
		pending = append(pending[:0], pending[used:]...)
		enough = 2 * len(pending) // tried at each window, a long event would take quadratic time
	}
	if len(pending) > 0 {
		return nil, errCut
	}
	if err := zip.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// inject puts the sender's fields into the message, if any are asked for. The
// bytes of a message are encoded anew for it.
func (s *session) inject(ctx context.Context, m *Message) error {
	c := &s.srv.config
	if c.SourceAddressKey == "" && c.SourceHostnameKey == "" || m.Events == 0 {
		return nil
	}
	if s.injection == nil {
		s.injection = &injection{}
		s.injection.add(c.SourceAddressKey, hostOf(s.remote))
		if c.SourceHostnameKey != "" {
			s.injection.add(c.SourceHostnameKey, s.srv.names.lookup(ctx, s.remote))
		}
	}
	var out []byte
	var err error
	if m.Compression != Uncompressed {
		var held int64
		out, err = s.srv.inflater.recompress(s.injection, m.Payload[0], m.Compression, func(n int64) error {
			if !s.srv.memory.acquire(ctx, n, c.MemoryWait) {
				return s.noMemory(n)
			}
			held += n
			return nil
		})
		s.srv.memory.release(held)
		m.Compression = Gzip
	} else {
		stream := m.Payload[0]
		if len(m.Payload) > 1 {
			stream = bytes.Join(m.Payload, nil)
		}
		out, err = s.injection.appendStream(make([]byte, 0, len(stream)+m.Events*(len(s.injection.fields)+5)), stream)
	}
	var why *Refusal
	if errors.As(err, &why) {
		return why
	}
	if err != nil {
		return streamRefusal(err)
	}
	m.pieces[0] = out
	m.Payload = m.pieces[:1]
	m.Size = len(out)
	return nil
}

// Limits of names.
const (
	lookupTimeout = 2 * time.Second
	nameLifetime  = time.Hour
	maxNames      = 10_000
)

// names remembers the host names of addresses (resolve_hostname).
type names struct {
	resolve func(ctx context.Context, ip string) ([]string, error)

	mu    sync.Mutex
	known map[netip.Addr]hostname
}

type hostname struct {
	name string
	till time.Time
}

// lookup is the name of a sender, or its address if it has none or the
// resolver does not answer in time.
func (n *names) lookup(ctx context.Context, sender net.Addr) string {
	ip := clientOf(sender)
	if !ip.IsValid() {
		return sender.String()
	}
	now := time.Now()
	n.mu.Lock()
	h, ok := n.known[ip]
	n.mu.Unlock()
	if ok && now.Before(h.till) {
		return h.name
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	h = hostname{ip.String(), now.Add(nameLifetime)}
	if found, err := n.resolve(ctx, ip.String()); err == nil && len(found) > 0 {
		h.name = string(bytes.TrimSuffix([]byte(found[0]), []byte(".")))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.known == nil || len(n.known) >= maxNames {
		n.known = map[netip.Addr]hostname{}
	}
	n.known[ip] = h
	return h.name
}
