package main

import "github.com/spf13/cobra"

func newBufferCommand(configPath *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "buffer",
		Short: "Look into the buffers on disk",
	}
	cmd.AddCommand(newRejectedCommand(configPath))
	return cmd
}
