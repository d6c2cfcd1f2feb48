package config

import (
	"errors"
	"regexp"
	"strings"
	"sync"
)

// patterns splits the argument of <match> at blanks; commas separate too, but
// not within braces.
func patterns(arg string) []string {
	depth := 0
	return strings.FieldsFunc(arg, func(r rune) bool {
		switch r {
		case '{':
			depth++
		case '}':
			depth--
		}
		return r == ' ' || r == '\t' || r == ',' && depth <= 0
	})
}

// compilePatterns makes one expression of all patterns of a <match>. As in
// fluentd, * is one part of a tag, ** any number of parts (also none), and
// {a,b} either pattern.
func compilePatterns(arg string) (*regexp.Regexp, error) {
	var all []string
	for _, p := range patterns(arg) {
		if strings.HasPrefix(p, "/") {
			return nil, errors.New("patterns that are regular expressions are not supported; use *, ** and {a,b}")
		}
		expr, err := translate(p)
		if err != nil {
			return nil, err
		}
		all = append(all, expr)
	}
	if len(all) == 0 {
		return nil, errors.New("there is no pattern")
	}
	return regexp.Compile(`\A(?s:` + strings.Join(all, "|") + `)\z`)
}

// translate makes a regular expression of one pattern.
func translate(p string) (string, error) {
	var b strings.Builder
	depth := 0
	for i := 0; i < len(p); {
		switch rest := p[i:]; {
		case strings.HasPrefix(rest, ".**"): // a.** matches a as well
			b.WriteString(`(?:\..*)?`)
			i += 3
		case strings.HasPrefix(rest, "**.") && (i == 0 || p[i-1] == '{' || p[i-1] == ','): // **.a matches a as well
			b.WriteString(`(?:.*\.)?`)
			i += 3
		case strings.HasPrefix(rest, "**"):
			b.WriteString(`.*`)
			i += 2
		case rest[0] == '*':
			b.WriteString(`[^.]*`)
			i++
		case rest[0] == '{':
			depth++
			b.WriteString(`(?:`)
			i++
		case rest[0] == '}':
			if depth--; depth < 0 {
				return "", errors.New("} closes nothing")
			}
			b.WriteString(`)`)
			i++
		case rest[0] == ',' && depth > 0:
			b.WriteString(`|`)
			i++
		default:
			n := strings.IndexAny(rest[1:], ".*{},") + 1
			if n == 0 {
				n = len(rest)
			}
			b.WriteString(regexp.QuoteMeta(rest[:n]))
			i += n
		}
	}
	if depth != 0 {
		return "", errors.New("{ is never closed")
	}
	return b.String(), nil
}

// maxCachedTags bounds the Router's memory of tags; a sender may invent more.
const maxCachedTags = 100_000

// Router finds the match of a tag. It remembers tags, so that patterns are
// tried once for each; it is safe for concurrent use.
type Router struct {
	matches []routed

	mu    sync.RWMutex
	cache map[string]*Match
}

type routed struct {
	expr  *regexp.Regexp
	match *Match
}

// NewRouter returns a Router over matches in order, which Load has checked.
func NewRouter(matches []*Match) (*Router, error) {
	r := &Router{cache: map[string]*Match{}}
	for _, m := range matches {
		expr, err := compilePatterns(m.Pattern)
		if err != nil {
			return nil, err
		}
		r.matches = append(r.matches, routed{expr, m})
	}
	return r, nil
}

// Match returns the first match whose pattern takes the tag, nil if none does.
func (r *Router) Match(tag []byte) *Match {
	r.mu.RLock()
	m, ok := r.cache[string(tag)]
	r.mu.RUnlock()
	if ok {
		return m
	}
	for _, c := range r.matches {
		if c.expr.Match(tag) {
			m = c.match
			break
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.cache) >= maxCachedTags {
		clear(r.cache)
	}
	r.cache[string(tag)] = m
	return m
}
