package load

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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
	// LostIDs and RepeatedIDs are the first of these.
	LostIDs     []string `json:"lost_ids,omitempty"`
	RepeatedIDs []string `json:"repeated_ids,omitempty"`
}

const (
	// verifyEvery is the least time between two readings of the files while events
	// are missing. It is at least what one reading takes.
	verifyEvery = 500 * time.Millisecond
	// namedIDs is how many lost or repeated events are named.
	namedIDs = 5
)

// verify reads the files until every expected event is there, or VerifyWait is
// over.
func (r *run) verify(ctx context.Context) (*Verification, error) {
	limit := time.Now().Add(r.o.VerifyWait)
	for {
		begun := time.Now()
		v, err := r.verifyOnce()
		if err != nil || v.Lost == 0 || begun.After(limit) {
			return v, err
		}
		r.missing.Store(v.Lost)
		if !sleep(ctx, time.Now().Add(max(verifyEvery, time.Since(begun)))) {
			return v, nil
		}
	}
}

// bits is a set of numbers, one bit each: a hundred million events take 12.5 MB.
type bits []uint64

func (b bits) has(n uint64) bool { return b[n/64]&(1<<(n%64)) != 0 }
func (b bits) set(n uint64)      { b[n/64] |= 1 << (n % 64) }

func (r *run) verifyOnce() (*Verification, error) {
	v := &Verification{}
	seen := map[uint32]bits{} // by sender: of chunk*events+event
	events := uint64(r.o.Events)
	unacked := map[uint64]bool{}
	for n, s := range r.ledger {
		seen[n] = make(bits, (s.next*events+63)/64)
		v.Expected += s.next * events
		for _, f := range s.window { // empty without acks
			unacked[number(n, f.chunk)] = true
			v.Expected -= events
		}
	}
	files, err := matching(r.o.Verify)
	if err != nil {
		return nil, fmt.Errorf("--verify: %w", err)
	}
	for _, name := range files {
		err := r.scanFile(name, func(sender uint32, chunk uint64, event uint32) {
			s := r.ledger[sender]
			if s == nil || chunk >= s.next || uint64(event) >= events {
				return
			}
			at := chunk*events + uint64(event)
			if !seen[sender].has(at) {
				seen[sender].set(at)
				v.Found++
				return
			}
			if v.Repeated++; len(v.RepeatedIDs) < namedIDs {
				v.RepeatedIDs = append(v.RepeatedIDs, r.eventID(sender, chunk, event))
			}
		})
		switch {
		case errors.Is(err, fs.ErrNotExist): // renamed or removed meanwhile
		case err != nil:
			return nil, fmt.Errorf("--verify: %w", err)
		default:
			v.Files++
		}
	}
	for n, s := range r.ledger {
		for at := range s.next * events {
			if seen[n].has(at) || unacked[number(n, at/events)] {
				continue
			}
			if v.Lost++; len(v.LostIDs) < namedIDs {
				v.LostIDs = append(v.LostIDs, r.eventID(n, at/events, uint32(at%events)))
			}
		}
	}
	slices.Sort(v.LostIDs)
	return v, nil
}

func (r *run) eventID(sender uint32, chunk uint64, event uint32) string {
	return fmt.Sprintf("%08x%016x%08x", r.maker.run, number(sender, chunk), event)
}

// matching lists the files of all patterns, and those below directories, each once
// although a link or a second pattern may name it again.
func matching(patterns []string) ([]string, error) {
	var names []string
	var infos []fs.FileInfo
	add := func(name string) error {
		info, err := os.Stat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // gone meanwhile
		case err != nil:
			return err
		case !info.Mode().IsRegular(), slices.ContainsFunc(infos, func(i fs.FileInfo) bool { return os.SameFile(i, info) }):
			return nil
		}
		names, infos = append(names, name), append(infos, info)
		return nil
	}
	for _, pattern := range patterns {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", pattern, err)
		}
		for _, top := range matches {
			if info, err := os.Stat(top); err != nil || !info.IsDir() {
				if err := add(top); err != nil {
					return nil, err
				}
				continue
			}
			if top, err = filepath.EvalSymlinks(top); err != nil { // WalkDir follows none
				return nil, err
			}
			err := filepath.WalkDir(top, func(name string, d fs.DirEntry, err error) error {
				switch {
				case errors.Is(err, fs.ErrNotExist):
					return nil
				case err != nil || d.IsDir():
					return err
				}
				return add(name)
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return names, nil
}

// scanFile calls found for each event id of the run in the file, whatever its
// format; .gz files are decompressed.
func (r *run) scanFile(name string, found func(sender uint32, chunk uint64, event uint32)) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	var in io.Reader = f
	if strings.HasSuffix(name, ".gz") {
		z, err := gzip.NewReader(bufio.NewReader(f))
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) { // still being written
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
			sender, chunk, ok1 := parseNumber(id[runLen:])
			event, ok2 := hexNumber(id[chunkIDLen:])
			if !ok1 || !ok2 {
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
