package load

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Verification is what was found in the files, in events.
type Verification struct {
	Files    int    `json:"files"`
	Expected uint64 `json:"expected"` // acked, or sent where no acks were asked for
	Found    uint64 `json:"found"`    // different ones
	Lost     uint64 `json:"lost"`     // expected and not found
	Repeated uint64 `json:"repeated"` // found again
}

// verifyEvery is the pace at which files are read again while events are missing.
const verifyEvery = 500 * time.Millisecond

// verify reads the files until every expected event is there, or VerifyWait is
// over.
func (r *run) verify(ctx context.Context) (*Verification, error) {
	limit := time.Now().Add(r.o.VerifyWait)
	for {
		v, err := r.verifyOnce()
		if err != nil || v.Lost == 0 || time.Now().After(limit) {
			return v, err
		}
		if !sleep(ctx, time.Now().Add(verifyEvery)) {
			return v, ctx.Err()
		}
	}
}

func (r *run) verifyOnce() (*Verification, error) {
	v := &Verification{}
	seen := map[uint32][]uint8{} // by sender: how often chunk*events+event was found, up to 2
	events := uint64(r.o.Events)
	unacked := map[uint64]bool{}
	for n, s := range r.ledger {
		seen[n] = make([]uint8, uint64(s.next)*events)
		v.Expected += uint64(s.next) * events
		for _, f := range s.window {
			unacked[uint64(n)<<32|uint64(f.chunk)] = true
			v.Expected -= events
		}
	}
	for _, pattern := range r.o.Verify {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("--verify %s: %w", pattern, err)
		}
		for _, name := range files {
			v.Files++
			if err := r.scanFile(name, func(sender, chunk, event uint32) {
				at := uint64(chunk)*events + uint64(event)
				if list := seen[sender]; at < uint64(len(list)) {
					if list[at] > 0 {
						v.Repeated++
					} else {
						list[at] = 1
						v.Found++
					}
				}
			}); err != nil {
				return nil, fmt.Errorf("--verify: %w", err)
			}
		}
	}
	for n, list := range seen {
		for i, count := range list {
			if count == 0 && !unacked[uint64(n)<<32|uint64(i)/events] {
				v.Lost++
			}
		}
	}
	return v, nil
}

// scanFile calls found for each event id of the run in the file, whatever its
// format; .gz files are decompressed.
func (r *run) scanFile(name string, found func(sender, chunk, event uint32)) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	var in io.Reader = f
	if strings.HasSuffix(name, ".gz") {
		z, err := gzip.NewReader(bufio.NewReader(f))
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		in = z
	}
	prefix := fmt.Appendf(nil, "%08x", r.maker.run)
	buf := make([]byte, 1<<20)
	have := 0
	for {
		n, err := in.Read(buf[have:])
		have += n
		p := buf[:have]
		for {
			i := bytes.Index(p, prefix)
			if i < 0 {
				p = p[max(0, len(p)-len(prefix)+1):]
				break
			}
			if len(p)-i < idLen {
				p = p[i:]
				break
			}
			id := p[i : i+idLen]
			sender, ok1 := hexNumber(id[8:])
			chunk, ok2 := hexNumber(id[16:])
			event, ok3 := hexNumber(id[24:])
			if !ok1 || !ok2 || !ok3 {
				p = p[i+1:]
				continue
			}
			found(sender, chunk, event)
			p = p[i+idLen:]
		}
		have = copy(buf, p)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) { // a gzip file still being written
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}
