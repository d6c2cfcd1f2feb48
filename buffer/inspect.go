package buffer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Inspection is what a buffer directory holds, read without changing anything
// and without the lock, so that it may be done beside a running weir.
type Inspection struct {
	Dir string `json:"dir"`
	// Holder is the process that has the directory open, empty if none has.
	Holder string `json:"holder,omitempty"`
	// Chunks in the order of their sequence numbers; those that were moved aside
	// come last.
	Chunks  []ChunkInfo  `json:"chunks"`
	Cursors []CursorInfo `json:"cursors"`
}

// ChunkInfo is what one file of a buffer holds.
type ChunkInfo struct {
	// File is its path, Seq its sequence number.
	File string `json:"file"`
	Seq  uint64 `json:"seq"`
	// State is active (may still get commits), sealed, or aside: a .damaged file,
	// kept after its readable part was delivered.
	State string `json:"state"`
	// Bytes is the length of its commits with padding, Size that of the file,
	// which is made at its full size.
	Bytes int64 `json:"bytes"`
	Size  int64 `json:"size"`
	// Entries and Events that can be read, and the events that cannot.
	Entries    uint64 `json:"entries"`
	Events     uint64 `json:"events"`
	LostEvents uint64 `json:"lost_events"`
	// Begun is when the chunk was begun, Written when its last commit was.
	Begun   time.Time `json:"begun"`
	Written time.Time `json:"written"`
	Damage  []Damage  `json:"damage,omitempty"`
	// Gone: the chunk was delivered, and its file removed or used again, while it
	// was being read.
	Gone bool `json:"gone,omitempty"`
}

// Damage is a place in a chunk that cannot be read.
type Damage struct {
	// Offset is that of the commit in the file, in bytes.
	Offset int64  `json:"offset"`
	Cause  string `json:"cause"`
}

// CursorInfo is how far an output has come.
type CursorInfo struct {
	Name string `json:"name"`
	// Seq and Offset are the chunk and the place in it up to which all is
	// delivered.
	Seq    uint64 `json:"seq"`
	Offset int64  `json:"offset"`
	// Entries and Events that are readable behind that place.
	Entries uint64 `json:"entries"`
	Events  uint64 `json:"events"`
}

// Place is where an entry lies: its chunk, and the offset of its commit in it.
type Place struct {
	Seq    uint64
	Offset int64
}

// Before reports whether p lies before the cursor's place, so that the entry is
// delivered.
func (p Place) Before(c CursorInfo) bool {
	return p.Seq < c.Seq || p.Seq == c.Seq && p.Offset < c.Offset
}

// The states of a ChunkInfo.
const (
	StateActive = "active"
	StateSealed = "sealed"
	StateAside  = "aside"
)

// Inspect reads every chunk of a directory, checks all checksums, and calls
// visit for each entry that is sound, oldest first; those of chunks that were
// moved aside are left out. The entry's memory is visit's only during the call.
// visit may be nil.
func Inspect(dir string, visit func(Place, *Entry) error) (*Inspection, error) {
	in := &Inspection{Dir: dir, Holder: Holder(dir)}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, dirError(dir, err)
	}
	var seqs []uint64
	var aside []string
	for _, f := range files {
		name := f.Name()
		if seq, ok := chunkSeq(name); ok {
			seqs = append(seqs, seq)
		} else if strings.HasSuffix(name, damagedSuffix) {
			aside = append(aside, name)
		} else if cursor, ok := isCursor(name); ok && !strings.HasSuffix(name, cursorNew) {
			// Before the chunks: what is delivered meanwhile is rather seen twice.
			c, err := inspectCursor(dir, cursor)
			if err != nil {
				return nil, err
			}
			in.Cursors = append(in.Cursors, c)
		}
	}
	slices.Sort(seqs)
	for i, seq := range seqs {
		end := int64(unstated)
		if i < len(seqs)-1 {
			end = statedEnd(osFS{}, dir, seq, seqs[i+1])
		}
		info, err := inspectChunk(chunkName(dir, seq), i == len(seqs)-1, end, func(p Place, e *Entry) error {
			for i := range in.Cursors {
				if c := &in.Cursors[i]; !p.Before(*c) {
					c.Entries++
					c.Events += uint64(e.Events)
				}
			}
			if visit == nil {
				return nil
			}
			return visit(p, e)
		})
		if err != nil {
			return nil, err
		}
		if !info.Gone || info.Entries > 0 {
			in.Chunks = append(in.Chunks, info)
		}
	}
	for _, name := range aside {
		info, err := InspectChunk(filepath.Join(dir, name), nil)
		if err != nil {
			return nil, err
		}
		in.Chunks = append(in.Chunks, info)
	}
	return in, nil
}

// InspectChunk is Inspect for one file, which may be one that was moved aside
// as damaged.
func InspectChunk(file string, visit func(Place, *Entry) error) (ChunkInfo, error) {
	return inspectChunk(file, false, unstated, visit)
}

// inspectChunk reads a chunk whose commits end at end, if the next one tells.
func inspectChunk(file string, newest bool, end int64, visit func(Place, *Entry) error) (info ChunkInfo, err error) {
	info = ChunkInfo{File: file, State: StateSealed}
	base := filepath.Base(file)
	if strings.HasSuffix(base, damagedSuffix) {
		info.State = StateAside
		base = strings.TrimSuffix(base, damagedSuffix)
	}
	seq, ok := chunkSeq(base)
	if !ok {
		return info, fmt.Errorf("%s is not named like a chunk of a buffer (%s<16 digits>%s)", file, chunkPrefix, chunkSuffix)
	}
	info.Seq = seq
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) && info.State != StateAside {
		info.Gone = true
		return info, nil
	}
	if err != nil {
		return info, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return info, err
	}
	info.Size = fi.Size()
	if visit == nil {
		visit = func(Place, *Entry) error { return nil }
	}
	s := &inspector{info: &info, visit: visit, newest: newest, end: end}
	s.walker = walker{f: osFile{f}, size: info.Size, chunk: &chunk{seq: seq, end: BlockSize, frames: 1}}
	if err := s.run(); err != nil {
		return info, fmt.Errorf("%s: %w", file, err)
	}
	// A delivered chunk's file is used again for another one.
	if info.State != StateAside {
		now, err := os.Stat(file)
		if err != nil || !os.SameFile(fi, now) {
			info.Gone, info.Damage, info.LostEvents = true, nil, 0
		}
	}
	return info, nil
}

// inspector goes through a chunk and checks every entry.
type inspector struct {
	walker
	info   *ChunkInfo
	visit  func(Place, *Entry) error
	newest bool
	end    int64 // by the next chunk's header
}

func (s *inspector) run() error {
	c := s.chunk
	headed, err := s.header()
	if err != nil {
		return err
	}
	if headed {
		p, err := s.read(0, frameHead)
		if err != nil {
			return err
		}
		if head, err := decodeFrame(p, c.seq); err == nil {
			s.info.Begun = head.written
		}
	}
	foot := *c
	sealed, _ := readFooter(s.f, &foot, s.size) // one that cannot be read is none
	if sealed {
		c.salt, s.salted = foot.salt, true
		s.size = foot.end
	} else if s.size = min(s.size, s.end); s.newest {
		s.info.State = StateActive
	}
	if !headed {
		next, err := s.resync(BlockSize)
		if err != nil {
			return err
		}
		switch {
		case next == 0 && !sealed && s.newest && s.info.Size <= BlockSize:
			return nil // made and not begun when power was lost
		case next == 0 && !sealed:
			s.foundBad(0, "nothing in it is a chunk of this number")
			return nil
		}
		s.foundBad(0, "the header is damaged")
	}
	off := int64(BlockSize)
	for off < s.size {
		f, ok, err := s.commitAt(off)
		if err != nil {
			return err
		}
		if !ok || off+f.length() > s.size && sealed {
			next, err := s.resync(off + BlockSize)
			if err != nil {
				return err
			}
			if next == 0 && !sealed {
				break // what an earlier use of the file has left, or zeros
			}
			s.foundBad(off, "no commit where one should be")
			if off = next; next == 0 {
				off = s.size
			}
			continue
		}
		torn, err := s.commit(off, f, sealed)
		if err != nil {
			return err
		}
		if torn {
			break
		}
		off += f.length()
		c.salt, s.salted, c.frames = f.salt, true, f.number+1
		s.info.Bytes = off - BlockSize
	}
	if sealed {
		s.info.Bytes = foot.end - BlockSize
		// Whole commits that are missing are in the footer's sum only.
		s.info.LostEvents = foot.events - min(foot.events, s.info.Events)
		if s.info.LostEvents > 0 && len(s.info.Damage) == 0 {
			s.foundBad(foot.end, "the footer counts more events than the chunk has")
		}
	}
	return nil
}

func (s *inspector) foundBad(off int64, cause string) {
	s.info.Damage = append(s.info.Damage, Damage{off, cause})
}

// commit checks the entries of one commit. The last one of a chunk that may
// still be written to is torn, and not damaged, if it is not whole: nobody was
// told that it is stored.
func (s *inspector) commit(off int64, f frame, sealed bool) (torn bool, err error) {
	end := off + frameHead + f.body
	cut := end > s.size
	if cut {
		end = s.size
	}
	if s.newest && !sealed {
		whole := false
		if !cut {
			if whole, err = s.whole(off, f); err != nil {
				return false, err
			}
		}
		if !whole {
			behind, err := s.resync(min(off+f.length(), s.size))
			if err != nil {
				return false, err
			}
			if behind == 0 {
				return true, nil
			}
		}
	}
	p, err := s.read(off, end-off)
	if err != nil {
		return false, err
	}
	body := p[min(frameHead, len(p)):]
	place := Place{s.info.Seq, off}
	events, bad := uint64(0), cut
	for len(body) > 0 {
		e, payload, n, err := decodeEntry(body, f.seed)
		if err != nil {
			bad = true
			if errors.Is(err, errEntryHead) {
				s.foundBad(off, err.Error())
				break
			}
			s.foundBad(off, fmt.Sprintf("%v: %d events of tag %.100q", err, e.Events, e.Tag))
			body = body[n:]
			continue
		}
		e.Payload = [][]byte{payload}
		s.info.Entries++
		s.info.Events += uint64(e.Events)
		events += uint64(e.Events)
		if err := s.visit(place, &e); err != nil {
			return false, err
		}
		body = body[n:]
	}
	s.info.Written = f.written
	if lost := f.events - min(f.events, events); lost > 0 {
		s.info.LostEvents += lost
	}
	if bad && len(s.info.Damage) == 0 {
		s.foundBad(off, "the commit is cut")
	}
	return false, nil
}

func inspectCursor(dir, name string) (CursorInfo, error) {
	c := CursorInfo{Name: name}
	p, err := os.ReadFile(cursorName(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil // renewed this very moment
	}
	if err != nil {
		return c, err
	}
	l := cursorLog{half: int64(len(p)) / 2}
	if l.half > 0 {
		last := l.scan(p[:2*l.half])
		c.Seq, c.Offset = last.pos.seq, last.pos.off
	}
	return c, nil
}

// Lock takes the directory as Open does, so that no weir changes it meanwhile;
// Close gives it back. The error is a *LockedError if somebody has it.
func Lock(dir string) (io.Closer, error) {
	l, err := osFS{}.Lock(filepath.Join(dir, lockName))
	if err != nil {
		return nil, dirError(dir, err)
	}
	return l, nil
}

// Holder tells which process has the directory open, from /proc/locks (proc(5)),
// since trying the lock could keep a weir from starting. It is empty if none has.
func Holder(dir string) string {
	name := filepath.Join(dir, lockName)
	var st syscall.Stat_t
	if err := syscall.Stat(name, &st); err != nil {
		return ""
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return ""
	}
	defer locks.Close()
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	lines := bufio.NewScanner(locks)
	for lines.Scan() {
		// 1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF
		f := strings.Fields(lines.Text())
		if len(f) > 5 && f[1] == "FLOCK" && f[5] == want {
			return f[4]
		}
	}
	return ""
}

// Cursors lists the names of the cursors that a directory has.
func Cursors(dir string) ([]string, error) {
	files, err := osFS{}.ReadDir(dir)
	if err != nil {
		return nil, dirError(dir, err)
	}
	var names []string
	for _, f := range files {
		if name, ok := isCursor(f); ok && !strings.HasSuffix(name, cursorNew) {
			names = append(names, name)
		}
	}
	return names, nil
}

// ReadCursor reads how far a cursor has come; Entries and Events are not filled.
func ReadCursor(dir, name string) (CursorInfo, error) { return inspectCursor(dir, name) }
