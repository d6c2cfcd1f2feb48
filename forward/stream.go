package forward

// streamScanner checks a stream of events that comes in pieces: each is
// [time, record] or [[time, metadata], record] with a map as record, times in
// range, nothing nested too deep. Like Scanner it keeps its place between calls.
type streamScanner struct {
	scan   Scanner
	step   streamStep
	events int
	depth  int
	// plainTime says that the next time cannot be [time, metadata]: in Message
	// mode an array in its place would be entries.
	plainTime bool
	shape     shape
	learned   bool
}

type streamStep uint8

const (
	atPair     streamStep = iota // before the header of an event
	atTime                       // after it: a time, or the header of [time, metadata]
	atMetaTime                   // the time within [time, metadata]
	atMeta                       // before the metadata
	inMeta                       // within it
	atRecord                     // before the record
	inRecord                     // within it
)

// reset prepares the scanner for a stream nested at most maxDepth deep.
func (s *streamScanner) reset(maxDepth int) {
	s.step, s.events, s.depth, s.plainTime = atPair, 0, maxDepth, false
	if s.learned {
		s.shape, s.learned = shape{}, false
	}
}

// atBoundary reports whether the bytes consumed so far are whole events.
func (s *streamScanner) atBoundary() bool { return s.step == atPair }

// scanEvents reads on in p, which must begin with the bytes that the last call
// did not consume, and stops after limit events in all. It returns how many
// bytes it consumed; n < len(p) without an error means that p ends within a
// header, or that the limit is reached.
func (s *streamScanner) scanEvents(p []byte, limit int) (n int, err error) {
	for {
		switch s.step {
		case atPair:
			if s.events >= limit || n == len(p) {
				return n, nil
			}
			if !s.learned && len(p)-n >= learnFrom {
				s.shape.learn(p[n:])
				s.learned = true
			}
			if m := s.shape.event(p[n:], s.depth); m > 0 {
				n += m
				s.events++
				continue
			}
			if p[n] == 0x92 {
				n++
			} else {
				size, ok := pairHeader(p[n:])
				if !ok {
					if len(p)-n < 5 && (p[n] == 0xdc || p[n] == 0xdd) {
						return n, nil
					}
					return n, errPair
				}
				n += size
			}
			s.step = atTime
		case atTime, atMetaTime:
			if n == len(p) {
				return n, nil
			}
			if s.step == atTime && !s.plainTime {
				if size, ok := pairHeader(p[n:]); ok {
					n += size
					s.step = atMetaTime
					continue
				}
				if (p[n] == 0xdc || p[n] == 0xdd) && len(p)-n < 5 {
					return n, nil
				}
			}
			size, err := timeLen(p[n:])
			if err != nil {
				return n, err
			}
			if size == 0 {
				return n, nil
			}
			if _, _, err := parseTime(p[n : n+size]); err != nil {
				return n, err
			}
			n += size
			if s.step == atMetaTime {
				s.step = atMeta
			} else {
				s.step = atRecord
			}
		case atMeta, atRecord:
			if n == len(p) {
				return n, nil
			}
			if !isMap(p[n]) {
				if s.step == atMeta {
					return n, errMetadata
				}
				if p[n] == 0xc0 {
					return n, errNilRecord
				}
				return n, errRecord
			}
			s.scan.Reset(1, s.depth)
			s.step++
		case inMeta, inRecord:
			m, done, err := s.scan.Scan(p[n:])
			n += m
			if err != nil || !done {
				return n, err
			}
			if s.step == inMeta {
				s.step = atRecord
			} else {
				s.step = atPair
				s.events++
			}
		}
	}
}
