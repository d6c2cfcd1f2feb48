// Package config reads fluentd's configuration language (its v1 syntax) into a
// typed, strict configuration: a name that weir does not know is an error with
// its place and the nearest name that it does know.
package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

// Pos is a place in a configuration file; Line and Column count from 1.
type Pos struct {
	File         string
	Line, Column int
}

func (p Pos) String() string { return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column) }

// Error is one problem of a configuration.
type Error struct {
	Pos  Pos
	Text string
}

func (e *Error) Error() string { return e.Pos.String() + ": " + e.Text }

// element is a section as written: <name arg> … </name>.
type element struct {
	name, arg string
	pos       Pos
	params    []param
	children  []*element
}

// param is one line "name value".
type param struct {
	name, value string
	pos         Pos
}

// maxInclude bounds files that include each other.
const maxInclude = 10

// parser reads one file after the other into a tree.
type parser struct {
	env    Env
	errs   []error
	within []string // files that are being read
}

func (ps *parser) fail(p Pos, format string, args ...any) {
	ps.errs = append(ps.errs, &Error{p, fmt.Sprintf(format, args...)})
}

// text is what of a file is not yet read.
type text struct {
	file         string
	s            string
	line, column int
}

func (t *text) pos() Pos { return Pos{t.file, t.line, t.column} }

// skip reads n bytes on.
func (t *text) skip(n int) string {
	got := t.s[:n]
	for _, c := range []byte(got) {
		if c == '\n' {
			t.line, t.column = t.line+1, 1
		} else {
			t.column++
		}
	}
	t.s = t.s[n:]
	return got
}

func (t *text) blanks() {
	t.skip(len(t.s) - len(strings.TrimLeft(t.s, " \t\r")))
}

// rest reads to the end of the line.
func (t *text) rest() string {
	n := strings.IndexByte(t.s, '\n')
	if n < 0 {
		n = len(t.s)
	}
	return strings.TrimRight(t.skip(n), " \t\r")
}

// file parses the text of one file into parent.
func (ps *parser) file(name, content string, parent *element) {
	t := &text{file: name, s: strings.TrimPrefix(content, "\ufeff"), line: 1, column: 1}
	open := []*element{parent}
	for t.s != "" {
		t.blanks()
		cur := open[len(open)-1]
		pos := t.pos()
		switch {
		case t.s == "":
		case t.s[0] == '\n':
			t.skip(1)
		case t.s[0] == '#':
			t.rest()
		case strings.HasPrefix(t.s, "</"):
			t.skip(2)
			name, found := strings.CutSuffix(stripComment(t.rest()), ">")
			name = strings.TrimSpace(name)
			switch {
			case !found:
				ps.fail(pos, "</%s lacks its >", name)
			case len(open) == 1:
				ps.fail(pos, "</%s> closes nothing", name)
			case name != cur.name:
				ps.fail(pos, "</%s> stands where </%s> is expected, for <%s> of line %d", name, cur.name, cur.name, cur.pos.Line)
				open = open[:len(open)-1]
			default:
				open = open[:len(open)-1]
			}
		case t.s[0] == '<':
			t.skip(1)
			head, found := strings.CutSuffix(stripComment(t.rest()), ">")
			if !found {
				ps.fail(pos, "<%s lacks its >", head)
				continue
			}
			name, arg, _ := strings.Cut(strings.TrimSpace(head), " ")
			e := &element{name: name, arg: strings.TrimSpace(arg), pos: pos}
			cur.children = append(cur.children, e)
			open = append(open, e)
		default:
			n := strings.IndexAny(t.s, " \t\r\n")
			if n < 0 {
				n = len(t.s)
			}
			name := t.skip(n)
			t.blanks()
			if name == "@include" {
				ps.include(pos, stripComment(t.rest()), cur)
				continue
			}
			value, ok := ps.value(t)
			if ok {
				cur.params = append(cur.params, param{name, value, pos})
			}
		}
	}
	for _, e := range open[1:] {
		ps.fail(e.pos, "<%s> is never closed: </%s> is missing", e.name, e.name)
	}
}

// stripComment cuts off a comment, which begins with # behind a blank.
func stripComment(s string) string {
	for i := range len(s) {
		if s[i] == '#' && (i == 0 || s[i-1] == ' ' || s[i-1] == '\t') {
			return strings.TrimSpace(s[:i])
		}
	}
	return strings.TrimSpace(s)
}

// value reads a parameter's value: quoted, JSON over several lines, or plain to
// the end of the line.
func (ps *parser) value(t *text) (string, bool) {
	pos := t.pos()
	if t.s == "" {
		return "", true
	}
	switch t.s[0] {
	case '"':
		v, n, err := doubleQuoted(t.s, ps.env)
		return ps.quoted(t, pos, v, n, err)
	case '\'':
		v, n, err := singleQuoted(t.s)
		return ps.quoted(t, pos, v, n, err)
	case '[', '{':
		if n := balanced(t.s); n > 0 {
			return t.skip(n), true
		}
		if strings.IndexByte(t.s, '\n') < 0 || !strings.Contains(t.s, "\"") {
			break
		}
		ps.fail(pos, "the array or hash that begins here is never closed")
		t.skip(len(t.s))
		return "", false
	}
	return stripComment(t.rest()), true
}

// quoted ends a quoted value, behind which only a comment may stand.
func (ps *parser) quoted(t *text, pos Pos, v string, n int, err error) (string, bool) {
	if err != nil {
		ps.fail(pos, "%v", err)
		t.rest()
		return "", false
	}
	t.skip(n)
	if rest := stripComment(t.rest()); rest != "" {
		ps.fail(pos, "%q stands behind the closing quote", rest)
		return "", false
	}
	return v, true
}

// balanced is the length of the JSON array or hash at the start of s, 0 if it
// does not end.
func balanced(s string) int {
	depth, inString := 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '[' || c == '{':
			depth++
		case c == ']' || c == '}':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return 0
}

// include reads the files of an @include into cur; the path is relative to the
// file that has the line.
func (ps *parser) include(pos Pos, pattern string, cur *element) {
	if strings.HasPrefix(pattern, "\"") {
		v, _, err := doubleQuoted(pattern, ps.env)
		if err != nil {
			ps.fail(pos, "@include: %v", err)
			return
		}
		pattern = v
	}
	if strings.Contains(pattern, "://") {
		ps.fail(pos, "@include takes files, not URLs: %s", pattern)
		return
	}
	if !filepath.IsAbs(pattern) {
		pattern = filepath.Join(filepath.Dir(pos.File), pattern)
	}
	files := []string{pattern}
	if strings.ContainsAny(pattern, "*?[") {
		var err error
		if files, err = filepath.Glob(pattern); err != nil {
			ps.fail(pos, "@include %s: %v", pattern, err)
			return
		}
		sort.Strings(files)
	}
	for _, f := range files {
		ps.read(pos, f, cur)
	}
}

// read parses a file into cur; pos is where it is asked for.
func (ps *parser) read(pos Pos, name string, cur *element) {
	if slices.Contains(ps.within, name) {
		ps.fail(pos, "%s includes itself", name)
		return
	}
	if len(ps.within) >= maxInclude {
		ps.fail(pos, "more than %d files include each other", maxInclude)
		return
	}
	b, err := os.ReadFile(name)
	if err != nil {
		ps.errs = append(ps.errs, includeError(pos, err))
		return
	}
	ps.within = append(ps.within, name)
	ps.file(name, string(b), cur)
	ps.within = ps.within[:len(ps.within)-1]
}

// includeError names the file and what to do; the first file has no place that
// asks for it.
func includeError(pos Pos, err error) error {
	hint := ""
	switch {
	case errors.Is(err, os.ErrNotExist):
		hint = "; check the path"
	case errors.Is(err, os.ErrPermission):
		hint = "; make it readable for the user that weir runs as"
	}
	if pos.File == "" {
		return fmt.Errorf("configuration: %w%s", err, hint)
	}
	return &Error{pos, fmt.Sprintf("%v%s", err, hint)}
}
