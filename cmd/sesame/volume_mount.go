package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs/fuse"
	"github.com/sesame-init/sesame/fs/sefs"
)

func volumeMountCommand() *cobra.Command {
	var allowOther bool
	var owner string
	cmd := &cobra.Command{
		Use:   "mount DIR MOUNTPOINT",
		Short: "Mount a volume, read-only, until interrupted",
		Long: `mount serves the volume DIR on the existing directory MOUNTPOINT. It prints "mounted" once files can be read,
stays in the foreground, and unmounts when it is interrupted or terminated. It also ends if MOUNTPOINT is unmounted by
other means.

Files are decrypted and verified as they are read. Reading a tampered file fails with an I/O error, and one line on
standard error names the file. Only the user who mounts has access, unless --allow-other is given; then the modes in the
volume decide.

You need root, a user namespace (unshare -Urm) or fusermount3 (Debian package fuse3); in a container, the device /dev/fuse
and the capability SYS_ADMIN.`,
		Example: "  sesame volume mount --key-file model.key --mac $(cat model.mac) resnet.volume /mnt",
		Args:    usageArgs(cobra.ExactArgs(2)),
	}
	cmd.Flags().BoolVar(&allowOther, "allow-other", false, "let other users in, as far as the modes in the volume allow")
	cmd.Flags().StringVar(&owner, "owner", "", "show all files as owned by `UID:GID`")
	return volumeReader(cmd, func(cmd *cobra.Command, v *sefs.Volume, args []string) error {
		log := logrus.New()
		log.SetOutput(cmd.ErrOrStderr())
		o := fuse.Options{AllowOther: allowOther, Log: log, Apart: true}
		if owner != "" {
			var err error
			if o.Owner, err = parseOwner(owner); err != nil {
				return &attest.Error{Code: attest.CodeUsage, Err: err, Hint: "See " + cmd.CommandPath() + " -h."}
			}
		}
		s, err := fuse.Mount(cmd.Context(), v, args[0], o)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "mounted %s on %s\n", cmd.Flags().Arg(0), args[0])
		select {
		case <-cmd.Context().Done():
			return s.Unmount()
		case <-s.Done():
			return nil
		}
	})
}

func parseOwner(s string) (*fuse.Owner, error) {
	uid, gid, _ := strings.Cut(s, ":")
	u, uidErr := strconv.ParseUint(uid, 10, 32)
	g, gidErr := strconv.ParseUint(gid, 10, 32)
	if uidErr != nil || gidErr != nil {
		return nil, fmt.Errorf("--owner %q is not of the form UID:GID", s)
	}
	return &fuse.Owner{UID: uint32(u), GID: uint32(g)}, nil
}
