package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/admin"
	"github.com/sesame-init/sesame/internal/broker/admin/adminpb"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
)

func logCommand() *cobra.Command {
	link := &brokerLink{}
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Read and verify a key broker's release log",
		Long:  "The log has an entry for every release, refusal and change: who got what, when, and why." + linkHelp,
	}
	link.flags(cmd)
	cmd.AddCommand(logListCommand(link), logVerifyCommand(link), logProveCommand(link), logMistimedCommand(link), logAcceptRollbackCommand(link))
	return cmd
}

const stepLog = "verifying release log"

func notGenuine(err error) error {
	return attest.Errorf(attest.CodeEvidence, stepLog, "Keep both checkpoints: together they prove it. Ask who can write to the store.", "%w", err)
}

// readLog reads entries from an index on, at most limit (0: all), that one checkpoint covers. each gets the size of the
// log, an index and an entry.
func readLog(ctx context.Context, c *admin.Client, from int64, limit int64, key string, each func(size, index int64, entry []byte) error) (
	signed []byte, checkpoint releaselog.Checkpoint, err error) {
	for at := from; ; {
		page, err := c.ReadLog(ctx, &adminpb.ReadLogRequest{From: at, Limit: 256})
		if err != nil {
			return nil, checkpoint, err
		}
		if signed == nil {
			signed = page.GetCheckpoint()
			if checkpoint, err = releaselog.Open(signed, key); err != nil {
				return nil, checkpoint, notGenuine(err)
			}
		}
		for _, entry := range page.GetEntries() {
			if at >= checkpoint.Size || limit > 0 && at-from >= limit {
				return signed, checkpoint, nil
			}
			if err := each(checkpoint.Size, at, entry); err != nil {
				return nil, checkpoint, err
			}
			at++
		}
		if at >= checkpoint.Size || limit > 0 && at-from >= limit {
			return signed, checkpoint, nil
		}
		if len(page.GetEntries()) == 0 {
			return nil, checkpoint, notGenuine(fmt.Errorf("the broker has signed %d entries, and does not show entry %d", checkpoint.Size, at))
		}
	}
}

// logKey is the log's public key: the pinned one, or what the broker says, with a warning.
func (l *brokerLink) logKey(ctx context.Context, c *admin.Client, stderr io.Writer) (string, error) {
	if l.LogKey != "" {
		return l.LogKey, nil
	}
	reply, err := c.Status(ctx, &adminpb.StatusRequest{})
	if err != nil {
		return "", err
	}
	if reply.GetLogKey() == "" {
		return "", attest.Errorf(attest.CodeDenied, stepLog, "Unlock it first: sesame rootkey unlock.", "%s", reply.GetLocked())
	}
	fmt.Fprintf(stderr, "no log key is pinned; the broker's is %s (keep it as log_key in the context file)\n", reply.GetLogKey())
	return reply.GetLogKey(), nil
}

func logListCommand(link *brokerLink) *cobra.Command {
	var asJSON bool
	var from, limit int64
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show entries, the oldest first",
		Long:  "With --json every line is one entry exactly as it is hashed, so log verify --entries can verify a saved list.",
		Example: `  sesame log list
  sesame log list --json --limit 0 > entries.jsonl`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return link.with(cmd, func(ctx context.Context, c *admin.Client) error {
				key, err := link.logKey(ctx, c, cmd.ErrOrStderr())
				if err != nil {
					return err
				}
				out := bufio.NewWriter(cmd.OutOrStdout())
				defer out.Flush()
				w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
				if !asJSON {
					fmt.Fprintln(w, "ENTRY\tTIME\tKIND\tWHO\tWHAT\tWHY")
				}
				_, _, err = readLog(ctx, c, from, limit, key, func(_, index int64, text []byte) error {
					if asJSON {
						_, err := fmt.Fprintf(out, "%s\n", text)
						return err
					}
					e, err := releaselog.Parse(text)
					if err != nil {
						return notGenuine(err)
					}
					_, err = fmt.Fprintln(w, strconv.FormatInt(index, 10)+"\t"+entryLine(e))
					return err
				})
				return errors.Join(err, w.Flush())
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print entries as they are")
	cmd.Flags().Int64Var(&from, "from", 0, "first entry")
	cmd.Flags().Int64Var(&limit, "limit", 1000, "maximum of entries; 0 is all")
	return cmd
}

func entryLine(e *releaselog.Entry) string {
	who, why := e.Workload, e.Reason
	if who == "" {
		who = "unknown"
	}
	who += " at " + e.Peer
	var what []string
	for _, s := range e.Secrets {
		name := s.Name
		if s.Version != "" {
			name += "@" + s.Version
		}
		what = append(what, name)
		if why == "" {
			why = s.Rule
		}
	}
	if e.Admin != nil {
		who, what, why = e.Admin.By, []string{e.Admin.Action}, e.Admin.Detail
	}
	if e.Unrecorded > 0 {
		why += fmt.Sprintf(" (and %d refusals before it that are not recorded)", e.Unrecorded)
	}
	if len(e.Dropped) > 0 {
		var rows []string
		for _, d := range e.Dropped {
			from, code := d.Peer, d.Code
			if from == "" {
				from, code = "others", "any"
			}
			rows = append(rows, fmt.Sprintf("%d from %s (%s)", d.Count, from, code))
		}
		why = "refusals that are not recorded: " + strings.Join(rows, ", ")
	}
	return strings.Join([]string{e.Time, string(e.Kind), who, strings.Join(what, ", "), why}, "\t")
}

func logVerifyCommand(link *brokerLink) *cobra.Command {
	var since, save, entries, checkpoint string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Verify the whole log, or that it continues an older checkpoint",
		Long: `Without --since, verify reads and hashes all entries, and checks them against what the broker has signed. With --since
the broker must prove that its log continues that checkpoint; entries are not read. Keep the new checkpoint with --save
for the next time: if an older state of the store is put back, only a comparison with a saved checkpoint shows it.

If you have saved entries, verify them without a broker: give --entries, --checkpoint and --log-key.`,
		Example: `  sesame log verify --save checkpoint
  sesame log verify --since checkpoint --save checkpoint
  sesame log verify --entries entries.jsonl --checkpoint checkpoint --log-key sesame-broker/…`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (entries == "") != (checkpoint == "") || entries != "" && since != "" {
				return usage("See "+cmd.CommandPath()+" -h.", "--entries goes with --checkpoint, and without --since")
			}
			out := cmd.OutOrStdout()
			if entries != "" {
				return verifySaved(out, link, entries, checkpoint)
			}
			return link.with(cmd, func(ctx context.Context, c *admin.Client) error {
				key, err := link.logKey(ctx, c, cmd.ErrOrStderr())
				if err != nil {
					return err
				}
				var signed []byte
				if since != "" {
					signed, err = verifySince(ctx, out, c, since, key)
				} else {
					signed, err = verifyWhole(ctx, out, cmd.ErrOrStderr(), c, key)
				}
				if err == nil && save != "" {
					err = os.WriteFile(save, signed, 0o644)
				}
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&since, "since", "", "file with an older checkpoint")
	f.StringVar(&save, "save", "", "file to save the verified checkpoint to")
	f.StringVar(&entries, "entries", "", "file with entries, of log list --json --limit 0")
	f.StringVar(&checkpoint, "checkpoint", "", "file with the checkpoint of --entries")
	return cmd
}

func verifyWhole(ctx context.Context, out, stderr io.Writer, c *admin.Client, key string) ([]byte, error) {
	var tree releaselog.Recomputed
	report, end := progress(stderr, "reading entries")
	var read int64
	signed, checkpoint, err := readLog(ctx, c, 0, 0, key, func(size, index int64, text []byte) error {
		if read += int64(len(text)); report != nil {
			report(read, read/(index+1)*size) // as long as the ones so far
		}
		return addEntry(&tree, text)
	})
	end()
	if err == nil {
		err = verdictOf(out, &tree, checkpoint)
	}
	return signed, err
}

func addEntry(tree *releaselog.Recomputed, text []byte) error {
	if _, err := releaselog.Parse(text); err != nil {
		return notGenuine(fmt.Errorf("entry %d: %w", tree.Size(), err))
	}
	return tree.Add(text)
}

func verdictOf(out io.Writer, tree *releaselog.Recomputed, c releaselog.Checkpoint) error {
	if err := tree.Check(c); err != nil {
		return notGenuine(err)
	}
	_, err := fmt.Fprintf(out, "all %d entries are those that %s has signed\n", c.Size, c.Origin)
	return err
}

func verifySaved(out io.Writer, link *brokerLink, entries, checkpoint string) error {
	if err := link.complete(); err != nil {
		return err
	}
	if link.LogKey == "" {
		return usage("It is printed by the broker at its start, and by sesame rootkey list.", "--log-key is missing")
	}
	signed, err := readBounded(checkpoint)
	if err != nil {
		return usage("", "%w", err)
	}
	c, err := releaselog.Open(signed, link.LogKey)
	if err != nil {
		return notGenuine(err)
	}
	f, err := os.Open(entries)
	if err != nil {
		return usage("", "%w", err)
	}
	defer f.Close()
	var tree releaselog.Recomputed
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, releaselog.MaxEntry+1)
	for tree.Size() < c.Size && lines.Scan() {
		if err := addEntry(&tree, lines.Bytes()); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return notGenuine(err)
	}
	return verdictOf(out, &tree, c)
}

func verifySince(ctx context.Context, out io.Writer, c *admin.Client, since, key string) ([]byte, error) {
	text, err := readBounded(since)
	if err != nil {
		return nil, usage("", "%w", err)
	}
	old, err := releaselog.Open(text, key)
	if err != nil {
		return nil, notGenuine(err)
	}
	page, err := c.ReadLog(ctx, &adminpb.ReadLogRequest{From: old.Size, Limit: 1})
	if err != nil {
		return nil, err
	}
	signed := page.GetCheckpoint()
	head, err := releaselog.Open(signed, key)
	if err != nil {
		return nil, notGenuine(err)
	}
	var proof [][]byte
	if old.Size > 0 && head.Size > old.Size {
		reply, err := c.ProveConsistency(ctx, &adminpb.ProveConsistencyRequest{Old: old.Size})
		if err != nil {
			return nil, err
		}
		signed = reply.GetCheckpoint()
		if head, err = releaselog.Open(signed, key); err != nil {
			return nil, notGenuine(err)
		}
		proof = reply.GetProof()
	}
	hashes, err := releaselog.Hashes(proof)
	if err != nil {
		return nil, notGenuine(err)
	}
	if err := head.CheckConsistency(old, hashes); err != nil {
		return nil, notGenuine(err)
	}
	_, err = fmt.Fprintf(out, "the log of %d entries continues the one of %d\n", head.Size, old.Size)
	return signed, err
}

// proofReport is what log prove prints.
type proofReport struct {
	Index      uint64   `json:"index"`
	Entry      string   `json:"entry"` // as it is hashed
	Checkpoint string   `json:"checkpoint"`
	Proof      []string `json:"proof"` // base64
}

func logMistimedCommand(link *brokerLink) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "mistimed INDEX --reason TEXT",
		Short: "Record in the log that an entry has the time of a wrong clock",
		Long: `The entry stays as it is. A new entry records that its time is wrong, who reported it, and why. Entries have the time of
the host's clock. Brokers of this version never bound their own clock by such a time. The first entry that they write
removes the bound that older versions kept in the store.`,
		Example: `  sesame log mistimed 17 --reason "node 3 ran with a clock of 2100"`,
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			index, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil || index < 0 {
				return usage("", "%q is not the number of an entry", args[0])
			}
			if reason == "" {
				return usage("Say how it is known that the time is wrong.", "--reason is missing")
			}
			return link.with(cmd, func(ctx context.Context, c *admin.Client) error {
				if _, err := c.MarkMistimed(ctx, &adminpb.MarkMistimedRequest{Index: index, Reason: reason}); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "the newest entry says that the time of entry %d is wrong\n", index)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why the time is known to be wrong (required)")
	return cmd
}

func logProveCommand(link *brokerLink) *cobra.Command {
	return &cobra.Command{
		Use:   "prove INDEX",
		Short: "Print an entry with the proof that the signed log has it, as JSON",
		Long: `prove verifies the proof before it prints it. Anyone who has the log's key can check the proof, too: SHA-256(0x00 ‖ entry)
must be leaf INDEX of the tree (RFC 9162, 2.1.3.2), and the checkpoint signs the root of that tree.`,
		Example: "  sesame log prove 17",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			index, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil || index < 0 {
				return usage("", "%q is not the number of an entry", args[0])
			}
			return link.with(cmd, func(ctx context.Context, c *admin.Client) error {
				key, err := link.logKey(ctx, c, cmd.ErrOrStderr())
				if err != nil {
					return err
				}
				r, err := c.ProveEntry(ctx, &adminpb.ProveEntryRequest{Index: index})
				if err != nil {
					return err
				}
				head, err := releaselog.Open(r.GetCheckpoint(), key)
				if err != nil {
					return notGenuine(err)
				}
				hashes, err := releaselog.Hashes(r.GetProof())
				if err == nil {
					err = head.CheckInclusion(hashes, index, r.GetEntry())
				}
				if err != nil {
					return notGenuine(err)
				}
				report := proofReport{Index: r.GetIndex(), Entry: string(r.GetEntry()), Checkpoint: string(r.GetCheckpoint())}
				for _, h := range r.GetProof() {
					report.Proof = append(report.Proof, base64.StdEncoding.EncodeToString(h))
				}
				return writeIndented(cmd.OutOrStdout(), report)
			})
		},
	}
}

func logAcceptRollbackCommand(link *brokerLink) *cobra.Command {
	return &cobra.Command{
		Use:   "accept-rollback CHECKPOINT",
		Short: "Let the broker continue from an older state of its store that was restored on purpose",
		Long: `If a broker's store is older than what it has seen, the broker stops. If you restored the store on purpose, run this
command to let it continue. CHECKPOINT is SIZE:ROOT of the restored log, as the broker's refusal names it, or a file with
a signed checkpoint that the restored log continues. The acceptance is the first new entry of the log. The releases,
counts and changes of the lost entries are lost, too.`,
		Example: "  sesame log accept-rollback 1204:5Wl9…=\n  sesame log accept-rollback saturday.checkpoint",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			accepted := args[0]
			if size, _, ok := strings.Cut(accepted, ":"); !ok || strings.Trim(size, "0123456789") != "" {
				text, err := readBounded(accepted)
				if err != nil {
					return usage("", "%w", err)
				}
				accepted = string(text)
			}
			return link.with(cmd, func(ctx context.Context, c *admin.Client) error {
				if _, err := c.AcceptRollback(ctx, &adminpb.AcceptRollbackRequest{Accepted: accepted}); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "the broker goes on from the restored log; the acceptance is its newest entry")
				return err
			})
		},
	}
}
