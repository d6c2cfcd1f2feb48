package quarantine

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
)

func open1(t *testing.T, dir string, limit int64) *Store {
	t.Helper()
	s, err := Open(dir, limit, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func item(n int) Item {
	return Item{Kind: "events", Tag: []byte("app\xff"), Chunk: []byte{0, 1}, Reason: "wrong_type", Cause: "a time that is text",
		Sender: "192.0.2.1:5", Received: time.Unix(1700000000, int64(n)).UTC(), Events: 3, Stored: n}
}

func TestPutListReadRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "rejected")
	s := open1(t, dir, 1<<20)
	if items, err := List(dir); err != nil || len(items) != 0 {
		t.Fatalf("before the first: %v, %v", items, err)
	}
	for n := range 3 {
		if _, err := s.Put(item(n), []byte("data\n\x00"+string(rune('0'+n)))); err != nil {
			t.Fatal(err)
		}
	}
	items, err := List(dir)
	if err != nil || len(items) != 3 {
		t.Fatalf("%v, %v", items, err)
	}
	for n, it := range items {
		got, data, err := Read(dir, it.ID)
		if err != nil {
			t.Fatal(err)
		}
		want := item(n)
		want.ID, want.Size = it.ID, int64(len(data))
		if !bytes.Equal(got.Tag, want.Tag) || got.Stored != n || !got.Received.Equal(want.Received) || got.Size != 7 || !bytes.Equal(got.Chunk, want.Chunk) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if string(data) != "data\n\x00"+string(rune('0'+n)) {
			t.Errorf("data %q", data)
		}
	}
	if err := Remove(dir, items[1].ID); err != nil {
		t.Fatal(err)
	}
	if items, _ := List(dir); len(items) != 2 {
		t.Errorf("after removing one: %v", items)
	}
	for _, id := range []string{"../x", "nothing"} {
		if _, _, err := Read(dir, id); err == nil {
			t.Errorf("Read %q", id)
		}
		if err := Remove(dir, id); err == nil {
			t.Errorf("Remove %q", id)
		}
	}
}

// TestBounded: the oldest make room for the newest, and the figures say so, also
// those of a store that is opened again.
func TestBounded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "rejected")
	const limit = 4000
	s := open1(t, dir, limit)
	for n := range 20 {
		if _, err := s.Put(item(n), make([]byte, 700)); err != nil {
			t.Fatal(err)
		}
	}
	items, err := List(dir)
	if err != nil || len(items) != 4 || items[3].Stored != 19 || items[0].Stored != 16 {
		t.Fatalf("%+v, %v", items, err)
	}
	if st := s.Stats(); st.Items != 4 || st.Dropped != 16 || st.Bytes > limit || st.Bytes < 4*700 {
		t.Errorf("stats %+v", st)
	}
	if st := open1(t, dir, limit).Stats(); st.Items != 4 || st.Dropped != 0 {
		t.Errorf("opened again: %+v", st)
	}
	if _, err := s.Put(item(1), make([]byte, limit)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("larger than all: %v", err)
	}
}

// TestConcurrent: many at once, none is lost, all have names of their own.
func TestConcurrent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "rejected")
	s := open1(t, dir, 1<<20)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := s.Put(item(0), []byte("x")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if items, err := List(dir); err != nil || len(items) != 50 {
		t.Errorf("%d items, %v", len(items), err)
	}
}

// TestDamage: unfinished files go, unreadable ones are listed as such.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"1.rejected.tmp": "x", "2.rejected": "", "3.rejected": "no JSON\n", "other": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open1(t, dir, 1<<20)
	if _, err := os.Stat(filepath.Join(dir, "1.rejected.tmp")); !errors.Is(err, os.ErrNotExist) {
		t.Error("an unfinished file stays")
	}
	items, err := List(dir)
	if err != nil || len(items) != 2 || items[0].Kind != "unreadable" || items[1].Cause == "" {
		t.Errorf("%+v, %v", items, err)
	}
}

// TestPutFails: no room for the directory, no promise.
func TestPutFails(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := &Store{dir: filepath.Join(file, "rejected"), limit: 1 << 20, log: zap.NewNop()}
	if _, err := s.Put(item(0), nil); err == nil {
		t.Error("stored below a file")
	}
	if st := s.Stats(); st.Items != 0 || st.Bytes != 0 {
		t.Errorf("stats %+v", st)
	}
}
