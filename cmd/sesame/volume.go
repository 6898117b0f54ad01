package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/privatefile"
)

func volumeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "volume",
		Short: "Make, read and check encrypted volumes",
		Long: `A volume is a directory in the format of Occlum's images: encrypted under a 128-bit key, or integrity-only.
Its MAC, printed when it is made, covers everything in it. Commands that read require it, because without it an older or
exchanged volume would go unnoticed. If an attacker can choose the content of an integrity-only volume, it gives no
protection, with or without a MAC.`,
	}
	var headroom []byte
	cmd.PersistentPreRun = func(*cobra.Command, []string) { headroom = make([]byte, garbageHeadroom) }
	cmd.PersistentPostRun = func(*cobra.Command, []string) { runtime.KeepAlive(headroom) }
	cmd.AddCommand(
		volumeCreateCommand(),
		volumeListCommand(),
		volumeCatCommand(),
		volumeExtractCommand(),
		volumeVerifyCommand(),
		volumeInfoCommand(),
		volumeMountCommand(),
	)
	return cmd
}

// garbageHeadroom is how many bytes are allocated and never touched, so that they take no memory. The garbage collector
// starts when the heap has grown by its own size, and so waits for as much more garbage. Each 4 KiB of a volume have a
// key of their own, and what the cipher prepares from it is garbage after one use: in the small heap of these commands
// the collector would be as busy as the cipher.
const garbageHeadroom = 8 << 20

// volumeFlags say which volume the reading commands expect.
type volumeFlags struct {
	keyFile    string
	mac        string
	unverified bool
}

func (f *volumeFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.keyFile, "key-file", "", "private file (chmod 600) with the volume's key; none for an integrity-only volume")
	cmd.Flags().StringVar(&f.mac, "mac", "", "MAC that the volume must have, `xx-xx-...`")
	cmd.Flags().BoolVar(&f.unverified, "unverified", false, "read without a MAC")
	cmd.MarkFlagsMutuallyExclusive("mac", "unverified")
}

// open opens the volume and says on stderr what is lost without a MAC.
func (f *volumeFlags) open(cmd *cobra.Command, dir string) (*sefs.Volume, error) {
	stderr := cmd.ErrOrStderr()
	o := sefs.OpenOptions{Unverified: f.unverified}
	var err error
	if f.keyFile != "" {
		if o.Key, err = readVolumeKey(private(cmd), f.keyFile); err != nil {
			return nil, err
		}
	}
	switch {
	case f.mac != "":
		mac, err := sefs.ParseMAC(f.mac)
		if err != nil {
			return nil, attest.Errorf(attest.CodeUsage, "reading --mac", attest.HintOf(err), "%v", err)
		}
		o.MAC = &mac
	case !f.unverified:
		return nil, attest.Errorf(attest.CodeUsage, "opening volume",
			"Give --mac with the MAC that \"sesame volume create\" printed, or --unverified to do without.",
			"%s: without a MAC an older or exchanged volume would go unnoticed", dir)
	case o.Key != nil:
		fmt.Fprintln(stderr, "warning: read without a MAC: an older state of the volume, or another one made with the same key,"+
			" goes unnoticed")
	default:
		fmt.Fprintln(stderr, "warning: read without key and MAC: whatever is there is taken for the volume")
	}
	return sefs.Open(dir, o)
}

// maxKeyFile is more than any form of a key takes.
const maxKeyFile = 256

func readVolumeKey(rule privatefile.Rule, path string) (*sefs.Key, error) {
	fail := func(err error) (*sefs.Key, error) {
		return nil, &attest.Error{Code: attest.CodeSecret, Step: "reading key file", Err: err}
	}
	text, err := rule.Read(path, maxKeyFile)
	if err != nil {
		return fail(err)
	}
	defer clear(text)
	key, err := sefs.ParseKey(text)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", path, err))
	}
	return &key, nil
}

// progress returns what to call with the bytes done and those to do, and what to call at the end. Only a terminal
// shows anything.
func progress(stderr io.Writer, what string) (report func(done, total int64), end func()) {
	f, ok := stderr.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, func() {}
	}
	bar := progressbar.NewOptions64(-1,
		progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(what), progressbar.OptionShowBytes(true),
		progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionFullWidth())
	report = func(done, total int64) {
		bar.ChangeMax64(total)
		_ = bar.Set64(done)
	}
	return report, func() { _ = bar.Finish() }
}

func volumeCreateCommand() *cobra.Command {
	var keyFile, layout string
	var reproducible, asJSON bool
	cmd := &cobra.Command{
		Use:   "create SRC DST",
		Short: "Make the volume DST of everything in the directory SRC, and print its MAC",
		Long: `create makes a volume, in a new directory. It keeps names, contents, permission bits and link targets, but not owners,
times and hard links. Devices, FIFOs and sockets are left out. If you give no --key-file, the volume is integrity-only:
it is not encrypted, and does not protect against an attacker who chooses its content.

With --reproducible the same input and key make the same volume. Anyone who sees two such volumes with one key learns
which 4 KiB blocks at equal places they have in common.`,
		Example: "  sesame keygen image-key model.key\n  sesame volume create --key-file model.key models/resnet resnet.volume",
		Args:    usageArgs(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			stderr := cmd.ErrOrStderr()
			o := sefs.CreateOptions{Reproducible: reproducible}
			var err error
			if o.Layout, err = sefs.ParseLayout(layout); err != nil {
				return &attest.Error{Code: attest.CodeUsage, Err: err, Hint: "See " + cmd.CommandPath() + " -h."}
			}
			if keyFile != "" {
				if o.Key, err = readVolumeKey(private(cmd), keyFile); err != nil {
					return err
				}
			}
			o.Skipped = func(path string, mode fs.FileMode) {
				fmt.Fprintf(stderr, "warning: left out %s: %v\n", printable(path), mode.Type())
			}
			src, err := os.OpenRoot(args[0])
			if err != nil {
				return err
			}
			defer src.Close()
			report, end := progress(stderr, "encrypting")
			o.Progress = report
			mac, err := sefs.Create(cmd.Context(), args[1], src.FS(), o)
			end()
			if err != nil {
				return fmt.Errorf("making volume: %w", err)
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
					MAC       sefs.MAC `json:"mac"`
					Layout    string   `json:"layout"`
					Encrypted bool     `json:"encrypted"`
				}{mac, o.Layout.String(), o.Key != nil})
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), mac)
			return err
		},
	}
	cmd.Flags().StringVar(&keyFile, "key-file", "", "private file (chmod 600) with the key: xx-xx-..., 32 hex digits or 16 raw bytes")
	cmd.Flags().StringVar(&layout, "layout", sefs.Layout031.String(), "version of Occlum that will mount it: 0.31 or 0.30")
	cmd.Flags().BoolVar(&reproducible, "reproducible", false, "make the same volume from the same input")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return cmd
}

// volumeReader is a command that opens a volume, its first argument, and does something with it.
func volumeReader(cmd *cobra.Command, run func(cmd *cobra.Command, v *sefs.Volume, args []string) error) *cobra.Command {
	var flags volumeFlags
	flags.register(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		v, err := flags.open(cmd, args[0])
		if err != nil {
			return err
		}
		defer v.Close()
		return run(cmd, v, args[1:])
	}
	return cmd
}

func volumeListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "ls DIR",
		Short:   "List everything in a volume",
		Example: "  sesame volume ls --key-file model.key --mac $(cat model.mac) resnet.volume",
		Args:    usageArgs(cobra.ExactArgs(1)),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print an object for each entry")
	return volumeReader(cmd, func(cmd *cobra.Command, v *sefs.Volume, _ []string) error {
		out := json.NewEncoder(cmd.OutOrStdout())
		return v.Walk(cmd.Context(), func(path string, in *sefs.Inode) error {
			var target string
			if in.Mode.Type() == fs.ModeSymlink {
				var err error
				if target, err = v.Target(in.Number); err != nil {
					return err
				}
			}
			if asJSON {
				return out.Encode(struct {
					Path   string `json:"path"`
					Mode   string `json:"mode"`
					Size   int64  `json:"size"`
					Inode  uint32 `json:"inode"`
					Target string `json:"target,omitempty"`
				}{path, in.Mode.String(), in.Size, in.Number, target})
			}
			line := fmt.Sprintf("%v %12d %s", in.Mode, in.Size, printable(path))
			if target != "" {
				line += " -> " + printable(target)
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), line)
			return err
		})
	})
}

// printable is a name that cannot do anything to a terminal: quoted if it has other than printable characters.
func printable(name string) string {
	if q := strconv.Quote(name); q != `"`+name+`"` {
		return q
	}
	return name
}

func volumeCatCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "cat DIR PATH",
		Short:   "Print a file of a volume",
		Example: "  sesame volume cat --key-file model.key --mac $(cat model.mac) resnet.volume 1/saved_model.pb | sha256sum",
		Args:    usageArgs(cobra.ExactArgs(2)),
	}
	return volumeReader(cmd, func(cmd *cobra.Command, v *sefs.Volume, args []string) error {
		f, err := v.Open(strings.TrimPrefix(args[0], "/"))
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(cmd.OutOrStdout(), f)
		return err
	})
}

func volumeExtractCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "extract DIR OUT",
		Short: "Write everything in a volume to the new directory OUT",
		Long: `extract writes the files, directories and links of a volume, with their permission bits, to a new directory. If
anything in the volume is not what it should be, the directory does not appear at all.`,
		Example: "  sesame volume extract --key-file model.key --mac $(cat model.mac) resnet.volume resnet",
		Args:    usageArgs(cobra.ExactArgs(2)),
	}
	return volumeReader(cmd, func(cmd *cobra.Command, v *sefs.Volume, args []string) error {
		report, end := progress(cmd.ErrOrStderr(), "extracting")
		defer end()
		return v.Extract(cmd.Context(), args[0], report)
	})
}

func volumeVerifyCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify DIR",
		Short: "Read and check everything in a volume",
		Long: `verify reads everything in a volume. If something is not what it should be, it prints the path of the first fault
and exits with 1.`,
		Example: "  sesame volume verify --key-file model.key --mac $(cat model.mac) resnet.volume",
		Args:    usageArgs(cobra.ExactArgs(1)),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the verdict as JSON")
	return volumeReader(cmd, func(cmd *cobra.Command, v *sefs.Volume, _ []string) error {
		report, end := progress(cmd.ErrOrStderr(), "verifying")
		err := v.Verify(cmd.Context(), report)
		end()
		if errors.Is(err, context.Canceled) || err != nil && !asJSON {
			return err
		}
		if !asJSON {
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "ok", v.MAC())
			return err
		}
		verdict := struct {
			OK    bool     `json:"ok"`
			MAC   sefs.MAC `json:"mac"`
			Path  string   `json:"path,omitempty"`
			Error string   `json:"error,omitempty"`
		}{OK: err == nil, MAC: v.MAC()}
		if err != nil {
			verdict.Error = err.Error()
			var at *fs.PathError
			if errors.As(err, &at) {
				verdict.Path = at.Path
			}
		}
		if err := json.NewEncoder(cmd.OutOrStdout()).Encode(verdict); err != nil || verdict.OK {
			return err
		}
		return errQuiet
	})
}

func volumeInfoCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "info DIR",
		Short:   "Print counts, sizes, layout and MAC of a volume",
		Example: "  sesame volume info --key-file model.key --unverified resnet.volume",
		Args:    usageArgs(cobra.ExactArgs(1)),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return volumeReader(cmd, func(cmd *cobra.Command, v *sefs.Volume, _ []string) error {
		info, err := v.Info()
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if asJSON {
			return json.NewEncoder(out).Encode(info)
		}
		kind := "integrity-only"
		if info.Encrypted {
			kind = "encrypted"
		}
		if info.RunTime {
			kind += ", written at run time"
		}
		_, err = fmt.Fprintf(out, `mac          %v
layout       %s
kind         %s
files        %d
directories  %d
links        %d
sockets      %d
content      %d bytes
stored       %d bytes
`, info.MAC, info.Layout, kind, info.Files, info.Directories, info.Symlinks, info.Sockets, info.ContentBytes,
			info.StoredBytes)
		return err
	})
}
