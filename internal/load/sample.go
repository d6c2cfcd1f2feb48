package load

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
)

// maxSample bounds a sample, uncompressed: all of it is kept in memory, encoded.
const maxSample = 64 << 20

// ReadSample reads the file of a sample, at most 64 MiB; one that is compressed by
// gzip is decompressed. Its errors name the file.
func ReadSample(name string) ([]byte, error) { return readSample(name, maxSample) }

func readSample(name string, limit int) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in := bufio.NewReader(f)
	var r io.Reader = in
	if magic, err := in.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		if r, err = gzip.NewReader(in); err != nil {
			return nil, fmt.Errorf("%s: gzip: %w", name, err)
		}
	}
	text, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	case len(text) > limit:
		return nil, fmt.Errorf("%s: more than %s, which would all be kept in memory; take a part of it, such as by head -c 10M", name, size(float64(limit)))
	case len(bytes.TrimSpace(text)) == 0:
		return nil, fmt.Errorf("%s: there are no lines in it", name)
	}
	return text, nil
}

// sampleRecords makes a record of each line that is not empty. Ids are put in
// later, so that a field of that name goes.
func sampleRecords(text []byte) ([][]field, error) {
	var records [][]field
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")) // a byte order mark
	for line := range bytes.Lines(text) {
		line = bytes.TrimRight(line, "\r\n")
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		fields, ok := parseObject(line)
		if !ok {
			fields = []field{{"message", line}}
		}
		kept := fields[:0]
		for _, f := range fields {
			if f.key != idKey {
				kept = append(kept, f)
			}
		}
		records = append(records, kept)
	}
	if len(records) == 0 {
		return nil, errors.New("--sample: the file has no lines")
	}
	return records, nil
}
