package main

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/lab/occlumsim"
)

func newCommand() *cobra.Command {
	o := occlumsim.NewOptions{Libc: occlumsim.MuslLoader, CABundle: "/etc/ssl/certs/ca-certificates.crt"}
	cmd := &cobra.Command{
		Use:     "new DIR",
		Short:   "Make an instance directory",
		Example: "  occlum new --init-ra grpc_ratls --init bin/init instance",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := occlumsim.New(args[0], o); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s initialized as an Occlum instance\n", args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&o.InitRA, "init-ra", "", "add the config template of this attestation: grpc_ratls or aecs")
	cmd.Flags().StringVar(&o.Init, "init", "", "install this program as initfs/bin/init (simulator only)")
	return cmd
}

func buildCommand() *cobra.Command {
	var signKey, imageKey, mode, edmm string
	var embed, force, reproducible bool
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Build, measure and sign the instance in the current directory",
		Long: "Build, measure and sign the instance in the current directory. Everything is built anew each time.\n" +
			"If you give no --sign-key, a key of your own is made, once, in $XDG_STATE_HOME/sesame\n" +
			"(~/.local/state/sesame).",
		Example: "  occlum gen-image-key image.key\n  occlum build --image-key image.key --sign-key sign.pem",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			instance, err := occlumsim.Open(".")
			if err != nil {
				return err
			}
			o := occlumsim.BuildOptions{EmbedImageKey: embed, Reproducible: reproducible, EDMM: edmm == "Y" || edmm == "y"}
			if mode == "HYPER" {
				return attest.Errorf(attest.CodeUsage, "building", "Leave --sgx-mode out.", "there is no mode HYPER here")
			}
			if imageKey != "" {
				text, err := os.ReadFile(imageKey)
				if err != nil {
					return err
				}
				key, err := sefs.ParseKey(text)
				if err != nil {
					return fmt.Errorf("reading %s: %w", imageKey, err)
				}
				o.ImageKey = &key
			}
			if o.SignKey, err = readSignKey(signKey); err != nil {
				return err
			}
			o.Progress = progress("building the image")
			enclave, err := instance.Build(cmd.Context(), o)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "mrenclave %s\n", enclave.MREnclave)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&imageKey, "image-key", "", "encrypt the image with the key in this file")
	flags.BoolVar(&embed, "buildin-image-key", false, "put the image key into the initfs, readable by everyone")
	flags.StringVar(&signKey, "sign-key", "", "RSA key of 3072 bits, PEM, that signs the enclave")
	flags.BoolVar(&reproducible, "reproducible", false,
		"make the same encrypted image, and so the same MRENCLAVE, from the same input (simulator only)")
	flags.BoolVarP(&force, "force", "f", false, "accepted for compatibility: everything is built anew anyway")
	flags.StringVar(&mode, "sgx-mode", "SIM", "accepted for compatibility: HW or SIM")
	flags.String("sign-tool", "", "taken for Occlum's sake, and ignored")
	flags.StringVar(&edmm, "enable-edmm", "N", "Y switches dynamic enclave memory on")
	return cmd
}

func readSignKey(name string) (*rsa.PrivateKey, error) {
	if name != "" {
		return occlumsim.ReadSignKey(name)
	}
	dir, err := stateDir()
	if err != nil {
		return nil, err
	}
	return occlumsim.DefaultSignKey(dir)
}

// progress is a bar on a terminal, nil elsewhere.
func progress(what string) func(done, total int64) {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return nil
	}
	var bar *progressbar.ProgressBar
	return func(done, total int64) {
		if bar == nil {
			bar = progressbar.DefaultBytes(total, what)
		}
		_ = bar.Set64(done)
	}
}

func packageCommand() *cobra.Command {
	var debug bool
	cmd := &cobra.Command{
		Use:     "package [FILE.tar.gz]",
		Short:   "Pack what a machine needs to run the built instance in the current directory",
		Example: "  occlum package instance.tar.gz",
		Args:    usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			instance, err := occlumsim.Open(".")
			if err != nil {
				return err
			}
			name := filepath.Base(instance.Dir) + ".tar.gz"
			if len(args) == 1 {
				name = args[0]
			}
			if err := instance.Package(name, debug); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is the package\n", name)
			return nil
		},
	}
	cmd.Flags().BoolVar(&debug, "debug", false, "also pack an instance that can be debugged")
	return cmd
}

func printCommand() *cobra.Command {
	return &cobra.Command{
		Use:       "print mrenclave|mrsigner",
		Short:     "Print a measurement of the built instance in the current directory",
		Example:   "  occlum print mrenclave",
		ValidArgs: []string{"mrenclave", "mrsigner"},
		Args:      usageArgs(cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs)),
		RunE: func(cmd *cobra.Command, args []string) error {
			instance, err := occlumsim.Open(".")
			if err != nil {
				return err
			}
			enclave, err := instance.LoadEnclave()
			if err != nil {
				return err
			}
			body, err := enclave.Report(occlumsim.KSS{})
			if err != nil {
				return err
			}
			value := body.MREnclave
			if args[0] == "mrsigner" {
				value = body.MRSigner
			}
			fmt.Fprintln(cmd.OutOrStdout(), hex.EncodeToString(value[:]))
			return nil
		},
	}
}

func genImageKeyCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "gen-image-key FILE",
		Short:   "Make a key for --image-key",
		Example: "  occlum gen-image-key image.key",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			var key sefs.Key
			if _, err := rand.Read(key[:]); err != nil {
				return err
			}
			return os.WriteFile(args[0], append(sefs.EncodeKey(key).Expose(), '\n'), 0o600)
		},
	}
}
