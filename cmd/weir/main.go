// Command weir receives logs over the Fluentd Forward protocol, stores them in
// a durable buffer before it acks, delivers them, and shows every queue on the
// way.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

// version is set by the linker (see the Makefile).
var version = "dev"

func main() {
	os.Exit(execute(os.Args[1:], os.Stdout, os.Stderr))
}

// execute runs the command line and returns the exit code: 0, or another after
// one line on stderr that says what to do; 1 where the command says no other.
func execute(args []string, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(context.Background()); err != nil {
		var exit *exitError
		if errors.As(err, &exit) {
			if exit.err != nil {
				fmt.Fprintf(stderr, "weir: %v\n", exit.err)
			}
			return exit.code
		}
		fmt.Fprintf(stderr, "weir: %v\n", err)
		return 1
	}
	return 0
}

func newRootCommand() *cobra.Command {
	var configPath string
	runE := func(cmd *cobra.Command, _ []string) error {
		return run(cmd.Context(), runOptions{configPath: configPath, stdout: cmd.OutOrStdout(), stderr: cmd.ErrOrStderr()})
	}
	root := &cobra.Command{
		Use:   "weir",
		Short: "A log receiver for the Fluentd Forward protocol that acks what is on disk and shows its queues",
		Long: `weir receives logs over the Fluentd Forward protocol (fluentd's and Fluent Bit's
out_forward, and logger libraries), stores them durably before it acks, delivers
them to files, and shows the depth of every queue on the way.

Without a command it runs the server; without -c it takes a safe default:
loopback only, everything below ./weir-data.`,
		Args:              cobra.NoArgs,
		RunE:              runE,
		DisableAutoGenTag: true,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Version:           version,
	}
	root.SetVersionTemplate("weir {{.Version}}\n")
	root.PersistentFlags().StringVarP(&configPath, "config", "c", "", "configuration file in fluentd's language (default: embedded)")
	root.AddCommand(
		&cobra.Command{
			Use:   "run",
			Short: "Run the server (the default)",
			Args:  cobra.NoArgs,
			RunE:  runE,
		},
		newCheckCommand(&configPath),
		newDoctorCommand(&configPath),
		newStatusCommand(&configPath),
		newTopCommand(&configPath),
		newBufferCommand(&configPath),
		newLoadCommand(),
		newVersionCommand(),
		newManCommand(),
	)
	return root
}
