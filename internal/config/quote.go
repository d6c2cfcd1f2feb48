package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
)

// Env gives the configuration what it may ask of its surroundings.
type Env struct {
	// Lookup is os.LookupEnv.
	Lookup func(name string) (string, bool)
	// Hostname is os.Hostname.
	Hostname func() (string, error)
	// LookupHost is net.LookupHost.
	LookupHost func(host string) ([]string, error)
}

// OSEnv is the process's environment.
func OSEnv() Env { return Env{Lookup: os.LookupEnv, Hostname: os.Hostname, LookupHost: net.LookupHost} }

// doubleQuoted reads "…" at the start of s, with escapes and #{…}, and returns
// its length.
func doubleQuoted(s string, env Env) (v string, n int, err error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), i + 1, nil
		case c == '\\' && i+1 < len(s):
			i++
			if e, ok := map[byte]byte{'n': '\n', 't': '\t', 'r': '\r', 'f': '\f', 'b': '\b', '0': 0}[s[i]]; ok {
				b.WriteByte(e)
			} else {
				b.WriteByte(s[i])
			}
		case c == '#' && i+1 < len(s) && s[i+1] == '{':
			end := strings.IndexByte(s[i:], '}')
			if end < 0 {
				return "", 0, errors.New("#{ is never closed")
			}
			v, err := embedded(s[i+2:i+end], env)
			if err != nil {
				return "", 0, err
			}
			b.WriteString(v)
			i += end
		default:
			b.WriteByte(c)
		}
	}
	return "", 0, errors.New("the closing quote is missing")
}

// singleQuoted reads '…' at the start of s, in which only \' and \\ mean
// anything.
func singleQuoted(s string) (v string, n int, err error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\'':
			return b.String(), i + 1, nil
		case s[i] == '\\' && i+1 < len(s) && (s[i+1] == '\'' || s[i+1] == '\\'):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(s[i])
		}
	}
	return "", 0, errors.New("the closing quote is missing")
}

// The Ruby that weir understands between #{ and }.
var (
	envIndex = regexp.MustCompile(`^ENV\[\s*["']([^"']*)["']\s*\](?:\s*\|\|\s*["']([^"']*)["'])?$`)
	envFetch = regexp.MustCompile(`^ENV\.fetch\(\s*["']([^"']*)["']\s*(?:,\s*["']([^"']*)["']\s*)?\)$`)
)

// embedded evaluates #{…}.
func embedded(code string, env Env) (string, error) {
	code = strings.TrimSpace(code)
	switch code {
	case "hostname", "Socket.gethostname":
		return env.Hostname()
	case "worker_id":
		return "0", nil
	}
	if m := envIndex.FindStringSubmatch(code); m != nil {
		if v, ok := env.Lookup(m[1]); ok {
			return v, nil
		}
		return m[2], nil
	}
	if m := envFetch.FindStringSubmatch(code); m != nil {
		if v, ok := env.Lookup(m[1]); ok {
			return v, nil
		}
		if strings.Contains(code, ",") {
			return m[2], nil
		}
		return "", fmt.Errorf("the environment has no %s", m[1])
	}
	return "", fmt.Errorf("weir runs no Ruby: #{%s} is not one of #{ENV['NAME']}, #{ENV['NAME'] || 'default'}, #{ENV.fetch('NAME', 'default')}, #{hostname}", code)
}
