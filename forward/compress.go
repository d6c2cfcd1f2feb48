package forward

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"

	"weir/forward/gunzip"
)

const (
	// inflateWindow is how much of a payload is decompressed at a time.
	inflateWindow = gunzip.MaxPiece
	// maxZstdWindow bounds the memory that a zstd frame can ask for.
	maxZstdWindow = 8 << 20
	// gzipPerCPU and zstdPerCPU are how many payloads are decompressed at once, for each
	// CPU. Their windows, of 0.1 and 8 MiB, are beside the memory budget, and
	// decompressing waits for nothing but a CPU: more at once would only take more
	// memory. It is more than one so that a small payload need not wait for all of a
	// large one.
	gzipPerCPU = 8
	zstdPerCPU = 2
)

// inflater checks compressed payloads piece by piece; it never holds a whole
// decompressed payload.
type inflater struct {
	gzip, zstd *windows
}

// windows are pooled, and bounded in number.
type windows struct {
	pool  sync.Pool
	slots chan struct{}
	waits atomic.Uint64
}

func newInflater() inflater {
	cpus := runtime.GOMAXPROCS(0)
	return inflater{
		gzip: &windows{slots: make(chan struct{}, gzipPerCPU*cpus)},
		zstd: &windows{slots: make(chan struct{}, zstdPerCPU*cpus)},
	}
}

// of are those for a compression.
func (f *inflater) of(c Compression) *windows {
	if c == Zstd {
		return f.zstd
	}
	return f.gzip
}

// window is one pooled decompressor with what belongs to it.
type window struct {
	stream streamScanner
	text   text
	gzip   *gunzip.Reader
	zstd   *zstdReader
}

// text is what a payload decompresses to. Next returns more of it, behind the last
// keep bytes of what it returned before, and io.EOF at the end; see gunzip.Reader.
type text interface {
	Next(keep int) ([]byte, error)
}

// zstdReader is a text.
type zstdReader struct {
	src bytes.Reader
	dec *zstd.Decoder
	end int // of what was returned last
	buf [inflateWindow]byte
}

// Next implements text.
func (z *zstdReader) Next(keep int) ([]byte, error) {
	copy(z.buf[:], z.buf[z.end-keep:z.end])
	n, err := z.dec.Read(z.buf[keep:])
	z.end = keep + n
	return z.buf[:z.end], err
}

// check decompresses payload through the scanner and returns the number of
// events.
func (f *inflater) check(payload []byte, c Compression, l parserLimits) (events int, err error) {
	w, err := f.open(payload, c)
	if err != nil {
		return 0, err
	}
	defer f.close(w, c)
	w.stream.reset(l.depth)
	return w.drain(limited{text: w.text, from: int64(len(payload)), c: c, l: l})
}

// size is how many bytes payload decompresses to; they are read to the end.
func (f *inflater) size(payload []byte, c Compression, l parserLimits) (n int64, err error) {
	w, err := f.open(payload, c)
	if err != nil {
		return 0, err
	}
	defer f.close(w, c)
	t := limited{text: w.text, from: int64(len(payload)), c: c, l: l}
	for err == nil {
		_, err = t.next(0)
	}
	if err == io.EOF {
		err = nil
	}
	return t.total, err
}

// all decompresses a payload of which size has told the length.
func (f *inflater) all(payload []byte, c Compression, size int) ([]byte, error) {
	w, err := f.open(payload, c)
	if err != nil {
		return nil, err
	}
	defer f.close(w, c)
	p := make([]byte, 0, size)
	for {
		piece, err := w.text.Next(0)
		p = append(p, piece...)
		if err == io.EOF {
			return p, nil
		}
		if err != nil {
			return nil, inflateRefusal(c, err)
		}
	}
}

// inflateRefusal gives an error of decompressing its reason.
func inflateRefusal(c Compression, err error) error {
	return refuse(ReasonDecompress, fmt.Errorf("%v payload: %w", c, err))
}

// limited is a text, as far as the limits go.
type limited struct {
	text  text
	from  int64 // compressed bytes
	total int64
	c     Compression
	l     parserLimits
}

// ratioFrom is how many bytes any payload may decompress to, whatever its ratio.
const ratioFrom = 1 << 20

// next is that of the text; its errors are a *Refusal, or io.EOF.
func (t *limited) next(keep int) ([]byte, error) {
	p, err := t.text.Next(keep)
	t.total += int64(len(p) - keep)
	switch {
	case t.total > t.l.inflated:
		return nil, refuse(ReasonInflated, fmt.Errorf("the %v payload decompresses to more than %d bytes; raise decompression_size_limit, or lower the sender's chunk size", t.c, t.l.inflated))
	case t.total > ratioFrom && t.total/t.l.ratio > t.from:
		return nil, refuse(ReasonRatio, fmt.Errorf("the %v payload of %d bytes decompresses to more than %d times as many; raise decompression_ratio_limit", t.c, t.from, t.l.ratio))
	case err != nil && err != io.EOF:
		return p, inflateRefusal(t.c, err)
	}
	return p, err
}

// open returns a pooled window with the text of the payload. It waits while too many
// are open.
func (f *inflater) open(payload []byte, c Compression) (*window, error) {
	of := f.of(c)
	select {
	case of.slots <- struct{}{}:
	default:
		of.waits.Add(1)
		of.slots <- struct{}{}
	}
	w, _ := of.pool.Get().(*window)
	if w == nil {
		w = &window{}
	}
	if c != Zstd {
		if w.gzip == nil {
			w.gzip = &gunzip.Reader{}
			w.text = w.gzip
		}
		w.gzip.Reset(payload)
		return w, nil
	}
	if w.zstd == nil {
		w.zstd = &zstdReader{}
		w.text = w.zstd
	}
	z := w.zstd
	z.src.Reset(payload)
	z.end = 0
	var err error
	if z.dec == nil {
		z.dec, err = zstd.NewReader(&z.src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
	} else {
		err = z.dec.Reset(&z.src)
	}
	if err != nil {
		f.close(w, c)
		return nil, inflateRefusal(c, err)
	}
	return w, nil
}

// close takes a window back, without the payload.
func (f *inflater) close(w *window, c Compression) {
	if c == Zstd {
		w.zstd.src.Reset(nil)
	} else {
		w.gzip.Reset(nil)
	}
	of := f.of(c)
	of.pool.Put(w)
	<-of.slots
}

// drain reads a text to its end. The scanner leaves at most a header unconsumed,
// which is kept for the next piece.
func (w *window) drain(t limited) (events int, err error) {
	kept := 0
	for {
		p, err := t.next(kept)
		used, scanErr := w.stream.scanEvents(p, noLimit)
		if scanErr != nil {
			return 0, streamRefusal(scanErr)
		}
		kept = len(p) - used
		if err == io.EOF {
			if kept > 0 || !w.stream.atBoundary() {
				return 0, refuse(ReasonBroken, errors.New("the decompressed payload ends in the middle of an event"))
			}
			return w.stream.events, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// String is the name in the protocol's option "compressed".
func (c Compression) String() string {
	switch c {
	case Uncompressed:
		return "text"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("Compression(%d)", uint8(c))
}
