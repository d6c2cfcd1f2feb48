package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"github.com/klauspost/compress/gzip"
	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"weir/forward/gunzip"
	"weir/internal/load"
)

// Of the limit programs.
const (
	limitBuffer = 1 << 20   // bytes of each connection
	limitFile   = 256 << 20 // bytes after which a file is written from its front again
	blockSize   = 4096
)

// limit copies every connection to a file of its own and parses nothing: what
// no receiver that stores its input can fall below. way is "cache" for plain
// writes and "direct" for O_DIRECT into a file that is written over. With a way of
// decompressors it stores nothing and decompresses every payload once: what no
// receiver that checks what it acks can fall below.
func limit(way string, l net.Listener, dir string) error {
	for n := 0; ; n++ {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Join(dir, fmt.Sprintf("copy.%d", n))
		go func() {
			defer conn.Close()
			var err error
			if decompress := decompressors[way]; decompress != nil {
				err = decompressAll(conn, decompress())
			} else {
				err = copyTo(way, conn, name)
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, "limit:", err)
			}
		}()
	}
}

// copyTo copies until the end of the stream.
func copyTo(way string, r io.Reader, name string) error {
	flags := os.O_CREATE | os.O_RDWR | os.O_TRUNC
	if way == "direct" {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(name, flags, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if way == "direct" {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, limitFile); err != nil {
			return err
		}
	}
	buf := aligned(limitBuffer)
	for at := int64(0); ; {
		n, readErr := io.ReadFull(r, buf)
		length := n
		if way == "direct" && n%blockSize != 0 { // the end of the stream
			length = (n/blockSize + 1) * blockSize
			clear(buf[n:length])
		}
		if length > 0 {
			if _, err := f.WriteAt(buf[:length], at); err != nil {
				return err
			}
		}
		if at += int64(length); at+limitBuffer > limitFile {
			at = 0
		}
		switch {
		case readErr == io.EOF || readErr == io.ErrUnexpectedEOF || errors.Is(readErr, unix.ECONNRESET):
			return nil
		case readErr != nil:
			return readErr
		}
	}
}

// decompressors are the ways to decompress a gzip payload and throw the text away:
// "library" is klauspost/compress, which whoever has no decoder of his own would use,
// "own" is weir's.
var decompressors = map[string]func() func(payload []byte) error{
	"library": func() func([]byte) error {
		var src bytes.Reader
		var text gzip.Reader
		buf := make([]byte, 64<<10)
		return func(payload []byte) error {
			src.Reset(payload)
			if err := text.Reset(&src); err != nil {
				return err
			}
			_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{&text}, buf)
			return err
		}
	},
	"own": func() func([]byte) error {
		var text gunzip.Reader
		return func(payload []byte) error {
			text.Reset(payload)
			for {
				if _, err := text.Next(0); err == io.EOF {
					return nil
				} else if err != nil {
					return err
				}
			}
		}
	},
}

// decompressAll reads messages of the mode gzip until the end of the stream.
func decompressAll(r io.Reader, decompress func(payload []byte) error) error {
	d := msgpack.NewDecoder(bufio.NewReaderSize(r, limitBuffer))
	var payload []byte
	for {
		n, err := d.DecodeArrayLen()
		switch {
		case err == io.EOF || errors.Is(err, unix.ECONNRESET):
			return nil
		case err != nil:
			return err
		case n != 3:
			return fmt.Errorf("an array of %d, want [tag, payload, option]", n)
		}
		if err := d.Skip(); err != nil {
			return err
		}
		if n, err = d.DecodeBytesLen(); err != nil {
			return err
		}
		payload = slices.Grow(payload[:0], n)[:n]
		if err := d.ReadFull(payload); err != nil {
			return err
		}
		if err := d.Skip(); err != nil {
			return err
		}
		if err := decompress(payload); err != nil {
			return err
		}
	}
}

// aligned is memory that O_DIRECT takes.
func aligned(n int) []byte {
	b := make([]byte, n+blockSize)
	skip := (blockSize - int(uintptr(unsafe.Pointer(&b[0]))%blockSize)) % blockSize
	return b[skip : skip+n]
}

// decompression is the same limit without a sender beside it, which has its share
// of caches and memory.
func (b *bench) decompression(ctx context.Context) error {
	if err := b.begin(ctx); err != nil {
		return err
	}
	chunk, packed, err := load.Payload(b.options("gzip", 1))
	if err != nil {
		return err
	}
	for _, way := range []string{"library", "own"} {
		decompress := decompressors[way]()
		before, n := cpu(), 0
		for start := time.Now(); time.Since(start) < b.duration; n++ {
			if err := decompress(packed); err != nil {
				return err
			}
		}
		fmt.Printf("decompressing a gzip chunk once, %s: %.2f CPU s/GB of events\n", way, (cpu()-before).Seconds()/float64(n*len(chunk))*1e9)
	}
	return nil
}

// cpu is what this process has used.
func cpu() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
