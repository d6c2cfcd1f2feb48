package gunzip

import "encoding/binary"

// quickInput is how many bytes one turn of quick may read.
const quickInput = 16

type step uint8

const (
	inHeader step = iota // before the header of a member
	inBlocks             // before the header of a block
	inStored             // within a stored block
	inCodes              // within a compressed block
)

// inflate decodes until the window is full or the member ends, with which the step
// is inHeader again.
func (r *Reader) inflate() (err error) {
	for r.out <= full && r.step != inHeader && err == nil {
		switch r.step {
		case inBlocks:
			if r.final {
				r.step = inHeader
				break
			}
			err = r.block()
		case inStored:
			err = r.store()
		case inCodes:
			if len(r.in)-r.pos >= quickInput {
				r.pos, err = r.quick(r.in, r.pos)
			} else {
				err = r.careful()
			}
		}
	}
	return err
}

// careful decodes what is left of the input, which is too little for quick: it gives
// quick a copy with zeros behind it, and then looks whether any of them were used.
func (r *Reader) careful() error {
	r.unread()
	var padded [4 * quickInput]byte // quick ends behind the third quarter at the latest
	rest, out := copy(padded[:], r.in[r.pos:]), r.out
	at, err := r.quick(padded[:], 0)
	if used := at - int(r.have>>3); used <= rest {
		r.pos += at // beyond the end if have tells so, which unread takes back
		r.unread()
		return err
	}
	r.out = out
	return errCut
}

// quick decodes symbols while there is room for any and while more than quickInput
// bytes are to come. It leaves the loop's state in registers as far as there are some.
func (r *Reader) quick(in []byte, pos int) (int, error) {
	bits, have, out := r.bits, r.have, r.out
	var err error
	for pos <= len(in)-quickInput && out <= full {
		bits |= binary.LittleEndian.Uint64(in[pos:]) << (have & 63)
		pos += int((63 - have) >> 3)
		have |= 56
		e := r.lit[bits&(1<<litBits-1)]
		if e&literal != 0 {
			binary.LittleEndian.PutUint16(r.window[out:], uint16(e>>8))
			out += int(e >> countShift & 3)
			bits >>= e & 63
			have -= uint(e & 63)
			e = r.lit[bits&(1<<litBits-1)]
			if e&literal != 0 {
				binary.LittleEndian.PutUint16(r.window[out:], uint16(e>>8))
				out += int(e >> countShift & 3)
				bits >>= e & 63
				have -= uint(e & 63)
				e = r.lit[bits&(1<<litBits-1)]
				if e&literal != 0 {
					binary.LittleEndian.PutUint16(r.window[out:], uint16(e>>8))
					out += int(e >> countShift & 3)
					bits >>= e & 63
					have -= uint(e & 63)
					continue
				}
			}
		}
		if e&exceptional != 0 {
			if e&(endOfBlock|invalid) == 0 {
				bits >>= e & 63
				have -= uint(e & 63)
				e = r.lit[uint64(e>>valueShift)+bits&(1<<(e>>kShift&15)-1)]
				if e&literal != 0 {
					r.window[out] = byte(e >> 8)
					out++
					bits >>= e & 63
					have -= uint(e & 63)
					continue
				}
			}
			if e&endOfBlock != 0 {
				bits >>= e & 63
				have -= uint(e & 63)
				r.step = inBlocks
				break
			}
			if e&invalid != 0 {
				bits >>= e & 63
				have -= uint(e & 63)
				err = errSymbol
				break
			}
		}
		length := int(e>>valueShift&511) + int(bits>>(e>>kShift&15))&int(e>>maskShift)
		bits >>= e & 63
		have -= uint(e & 63)
		if have < 28 {
			bits |= binary.LittleEndian.Uint64(in[pos:]) << (have & 63)
			pos += int((63 - have) >> 3)
			have |= 56
		}
		e = r.dist[bits&(1<<distBits-1)]
		if e&exceptional != 0 {
			bits >>= e & 63
			have -= uint(e & 63)
			if e&invalid != 0 {
				err = errSymbol
				break
			}
			e = r.dist[uint64(e>>valueShift)+bits&(1<<(e>>kShift&15)-1)]
		}
		distance := int(e>>valueShift) + int(bits&(1<<(e&63)-1)>>(e>>kShift&15))
		bits >>= e & 63
		have -= uint(e & 63)
		if distance > out-r.start {
			err = errDistance
			break
		}
		if distance < 16 {
			r.overlap(out, distance, length)
			out += length
			continue
		}
		// Most are short: two pieces without asking cost less than a wrong guess.
		w, from := &r.window, out-distance
		copy(w[out:out+16], w[from:from+16])
		copy(w[out+16:out+32], w[from+16:from+32])
		for i := 32; i < length; i += 16 {
			copy(w[out+i:out+i+16], w[from+i:from+i+16])
		}
		out += length
	}
	r.bits, r.have, r.out = bits&(1<<(have&63)-1), have, out
	return pos, err
}

// overlap copies length bytes from distance before at to at; they may overlap. What is
// copied once can be copied together with what it was copied from.
func (r *Reader) overlap(at, distance, length int) {
	from := at - distance
	for end := at + length; at < end; {
		at += copy(r.window[at:end], r.window[from:at])
	}
}
