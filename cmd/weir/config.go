package main

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"weir/internal/config"
	"weir/netopt"
)

//go:embed default.conf
var defaultConfig string

// loadConfig reads the file, or the embedded default if path is empty.
func loadConfig(path string) (*config.Config, error) {
	if path != "" {
		return config.Load(path, config.OSEnv())
	}
	return config.Parse("default.conf", defaultConfig, config.OSEnv())
}

// statusAddress is where a client finds the status endpoint: loopback if the
// endpoint is bound to a wildcard.
func statusAddress(c *config.Config) string {
	m := c.Monitor
	switch m.Bind {
	case "0.0.0.0", "":
		m.Bind = "127.0.0.1"
	case "::", "[::]":
		m.Bind = "::1"
	}
	return m.Address()
}

func newCheckCommand(configPath *string) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check the configuration and print it with all defaults, and what the kernel would grant",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(*configPath)
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if err := c.WriteEffective(w); err != nil {
				return err
			}
			fmt.Fprintln(w)
			for _, warning := range c.Warnings {
				fmt.Fprintf(w, "# warning: %s\n", warning)
			}
			return kernelGrants(cmd, c)
		},
	}
}

// kernelGrants tells for each source which backlog it would get now. A backlog
// that the configuration insists on and the kernel does not grant is an error.
func kernelGrants(cmd *cobra.Command, c *config.Config) error {
	limit, err := netopt.SomaxConn()
	if err != nil {
		return err
	}
	for _, s := range c.Sources {
		addresses := strings.Join(s.Addresses, ", ")
		switch {
		case s.Backlog == 0:
			fmt.Fprintf(cmd.OutOrStdout(), "# %s: asks for what the kernel allows, %d (net.core.somaxconn)\n", addresses, limit)
		case s.Backlog <= limit:
			fmt.Fprintf(cmd.OutOrStdout(), "# %s: asks for a backlog of %d, the kernel grants it (net.core.somaxconn is %d)\n", addresses, s.Backlog, limit)
		default:
			short := &netopt.BacklogError{Addr: addresses, Asked: s.Backlog, Granted: limit, Sysctl: "net.core.somaxconn"}
			if !s.AllowShortBacklog {
				return short
			}
			fmt.Fprintf(cmd.OutOrStdout(), "# warning: %v\n", short)
		}
		if n, err := netopt.Sysctl(migrateSysctl); s.Listeners > 1 && err == nil && n == 0 {
			fmt.Fprintf(cmd.OutOrStdout(), "# warning: %s: %s is 0, so that what waits in the queue of a listener that closes is reset; sysctl -w %s=1\n", addresses, migrateSysctl, migrateSysctl)
		}
	}
	return nil
}

// orphans finds buffers below root_dir that no match uses any more: what is in
// them would wait for ever.
func orphans(c *config.Config) []string {
	dir := filepath.Join(c.RootDir, "buffer")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	used := map[string]bool{}
	for _, matches := range c.Routes {
		for _, m := range matches {
			used[filepath.Clean(m.Buffer.Path)] = true
		}
	}
	var found []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		chunks, err := filepath.Glob(filepath.Join(path, "chunk.*.weir"))
		if e.IsDir() && !used[path] && err == nil && len(chunks) > 0 {
			found = append(found, path)
		}
	}
	return found
}
