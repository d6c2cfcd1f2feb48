package doctor

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
)

// headings of the groups, worst first, with the colours of a terminal (ECMA-48).
var headings = []struct {
	severity Severity
	text     string
	colour   string
}{{Error, "ERROR", "\x1b[1;31m"}, {Warning, "WARNING", "\x1b[1;33m"}, {Note, "NOTE", "\x1b[1;36m"}, {OK, "OK", "\x1b[1;32m"}}

// WriteText writes the findings for people: grouped, the worst first.
func WriteText(w io.Writer, all []Finding, colour bool) error {
	b := bufio.NewWriter(w)
	for _, h := range headings {
		first := true
		for _, f := range all {
			if f.Severity != h.severity {
				continue
			}
			if first {
				heading := h.text
				if colour {
					heading = h.colour + heading + "\x1b[0m"
				}
				fmt.Fprintln(b, heading)
				first = false
			}
			subject := f.Subject
			if subject != "" {
				subject = " " + subject
			}
			fmt.Fprintf(b, "  %s%s: %s\n", f.Check, printable(subject), printable(f.Found))
			for _, line := range []struct{ name, text string }{{"why", f.Why}, {"mend", f.Mend}} {
				if line.text != "" {
					fmt.Fprintf(b, "      %-5s %s\n", line.name+":", printable(line.text))
				}
			}
			if f.Severity != OK {
				fmt.Fprintf(b, "      see:  %s\n", f.Doc)
			}
		}
		if !first {
			fmt.Fprintln(b)
		}
	}
	fmt.Fprintln(b, Summary(all))
	return b.Flush()
}

// Summary counts the findings in one line.
func Summary(all []Finding) string {
	var parts []string
	for _, h := range headings {
		n := 0
		for _, f := range all {
			if f.Severity == h.severity {
				n++
			}
		}
		if n > 0 {
			name := strings.ToLower(h.text)
			if n > 1 && h.severity != OK {
				name += "s"
			}
			parts = append(parts, fmt.Sprintf("%d %s", n, name))
		}
	}
	return strings.Join(parts, ", ")
}

// printable keeps control characters of file names and kernel lines out of the
// terminal.
func printable(s string) string {
	if !strings.ContainsFunc(s, unicode.IsControl) {
		return s
	}
	runes := []rune(s)
	for i := range runes {
		if unicode.IsControl(runes[i]) {
			runes[i] = '?'
		}
	}
	return string(slices.Clip(runes))
}
