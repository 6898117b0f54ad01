package main

import (
	"crypto/rand"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/privatefile"
)

func keygenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "Make keys",
	}
	cmd.AddCommand(keygenImageKeyCommand())
	return cmd
}

func keygenImageKeyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "image-key [FILE]",
		Short: "Make a key for an image or a volume, in the form of \"occlum gen-image-key\"",
		Long: `image-key makes a random 128-bit key and writes it as Occlum does: xx-xx-...-xx and a line end. FILE must not exist;
only its owner can read it. If you give no FILE, the key goes to standard output.`,
		Example: "  sesame keygen image-key image_key",
		Args:    usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var key sefs.Key
			if _, err := rand.Read(key[:]); err != nil {
				return err
			}
			text := sefs.EncodeKey(key)
			defer text.Wipe()
			line := append(text.Expose(), '\n')
			defer clear(line)
			if len(args) == 0 {
				_, err := cmd.OutOrStdout().Write(line)
				return err
			}
			return privatefile.Create(args[0], line)
		},
	}
}
