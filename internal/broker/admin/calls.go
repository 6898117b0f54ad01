package admin

import (
	"context"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
	"github.com/sesame-init/sesame/internal/broker/admin/adminpb"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
)

// maxLogBytes bounds the entries of one answer.
const maxLogBytes = 512 << 10

// Prove implements the service.
func (s *Server) Prove(ctx context.Context, hello *sessionpb.Hello) (*sessionpb.BrokerEvidence, error) {
	who := from(ctx)
	return s.options.Session.Prove(ctx, who.State, who.own, hello.GetNonce())
}

// Status implements the service.
func (s *Server) Status(ctx context.Context, _ *adminpb.StatusRequest) (*adminpb.StatusReply, error) {
	k := s.options.Keystore
	reply := &adminpb.StatusReply{Store: k.StoreID()}
	slots, err := k.Slots(ctx)
	if err != nil {
		return nil, err
	}
	for _, slot := range slots {
		reply.Slots = append(reply.Slots, encodeSlot(slot))
	}
	if err := k.Ready(ctx); err != nil {
		reply.Locked = err.Error()
		return reply, nil
	}
	reply.LogKey, err = k.LogKey()
	return reply, err
}

func encodeSlot(s rootkey.Slot) *adminpb.Slot {
	return &adminpb.Slot{Id: s.ID, Kind: s.Kind, Created: s.Created.Unix()}
}

// ListSecrets implements the service.
func (s *Server) ListSecrets(ctx context.Context, _ *adminpb.ListSecretsRequest) (*adminpb.ListSecretsReply, error) {
	list, err := s.options.Keystore.List(ctx)
	if err != nil {
		return nil, err
	}
	reply := &adminpb.ListSecretsReply{}
	for _, l := range list {
		shown := &adminpb.Secret{Name: l.Name, Releases: l.Releases, ReadOnly: l.ReadOnly}
		for _, v := range l.Versions {
			version := &adminpb.Version{Id: v.ID, Kind: string(v.Kind)}
			if !v.Created.IsZero() {
				version.Created = v.Created.Unix()
			}
			if !v.Withdrawn.IsZero() {
				version.Withdrawn = v.Withdrawn.Unix()
			}
			shown.Versions = append(shown.Versions, version)
		}
		reply.Secrets = append(reply.Secrets, shown)
	}
	return reply, nil
}

// PutSecret implements the service.
func (s *Server) PutSecret(ctx context.Context, r *adminpb.PutSecretRequest) (*adminpb.PutSecretReply, error) {
	kind := keystore.Kind(r.GetKind())
	reply := &adminpb.PutSecretReply{}
	value := attest.NewSecret(r.GetContent())
	if recipe := r.GetRecipe(); recipe != nil {
		var err error
		value, reply.Public, err = keystore.Recipe{Kind: kind, Size: int(recipe.GetSize()), Names: recipe.GetNames(),
			Days: int(recipe.GetDays())}.Generate(s.options.Now())
		if err != nil {
			return nil, err
		}
	}
	defer value.Wipe()
	store := s.options.Keystore.Put
	if r.GetRotate() {
		store = s.options.Keystore.Rotate
	}
	var err error
	reply.Version, err = store(ctx, from(ctx).by, r.GetName(), kind, value)
	return reply, err
}

// WithdrawVersion implements the service.
func (s *Server) WithdrawVersion(ctx context.Context, r *adminpb.WithdrawVersionRequest) (*adminpb.Done, error) {
	return &adminpb.Done{}, s.options.Keystore.Withdraw(ctx, from(ctx).by, r.GetName(), r.GetVersion())
}

// DeleteSecret implements the service.
func (s *Server) DeleteSecret(ctx context.Context, r *adminpb.DeleteSecretRequest) (*adminpb.Done, error) {
	return &adminpb.Done{}, s.options.Keystore.Delete(ctx, from(ctx).by, r.GetName())
}

// PushPolicy implements the service.
func (s *Server) PushPolicy(ctx context.Context, r *adminpb.PushPolicyRequest) (*adminpb.Done, error) {
	if s.options.Policies == nil {
		return nil, attest.Errorf(attest.CodeConfig, "pushing policy", "", "this broker takes no policy over the admin channel")
	}
	return &adminpb.Done{}, s.options.Policies.Replace(ctx, r.GetText(), "admin "+from(ctx).by)
}

// Unlock implements the service.
func (s *Server) Unlock(ctx context.Context, r *adminpb.UnlockRequest) (*adminpb.UnlockReply, error) {
	k := s.options.Keystore
	switch by := r.GetBy().(type) {
	case *adminpb.UnlockRequest_Passphrase:
		secret := attest.NewSecret(by.Passphrase)
		defer secret.Wipe()
		return &adminpb.UnlockReply{}, k.Unlock(ctx, rootkey.Passphrase{Secret: secret})
	case *adminpb.UnlockRequest_Share:
		secret := attest.NewSecret(by.Share)
		defer secret.Wipe()
		missing, err := k.UnlockShare(ctx, secret)
		return &adminpb.UnlockReply{Missing: int32(missing)}, err
	}
	return nil, attest.Errorf(attest.CodeConfig, "unlocking", "", "neither a passphrase nor a share")
}

// Protect implements the service.
func (s *Server) Protect(ctx context.Context, r *adminpb.ProtectRequest) (*adminpb.ProtectReply, error) {
	var way rootkey.Way
	var split rootkey.Split
	switch by := r.GetBy().(type) {
	case *adminpb.ProtectRequest_Passphrase:
		secret := attest.NewSecret(by.Passphrase)
		defer secret.Wipe()
		way = rootkey.Passphrase{Secret: secret}
	case *adminpb.ProtectRequest_Split:
		split = rootkey.Split{Threshold: int(by.Split.GetThreshold()), Number: int(by.Split.GetNumber())}
		way = &split
	default:
		return nil, attest.Errorf(attest.CodeConfig, "protecting root key", "", "neither a passphrase nor shares")
	}
	slot, err := s.options.Keystore.Protect(ctx, from(ctx).by, way)
	if err != nil {
		return nil, err
	}
	reply := &adminpb.ProtectReply{Slot: encodeSlot(slot)}
	for _, share := range split.Shares {
		reply.Shares = append(reply.Shares, share.Expose())
	}
	return reply, nil
}

// RemoveSlot implements the service.
func (s *Server) RemoveSlot(ctx context.Context, r *adminpb.RemoveSlotRequest) (*adminpb.Done, error) {
	return &adminpb.Done{}, s.options.Keystore.Unprotect(ctx, from(ctx).by, r.GetId())
}

// ReadLog implements the service.
func (s *Server) ReadLog(ctx context.Context, r *adminpb.ReadLogRequest) (*adminpb.ReadLogReply, error) {
	if r.GetFrom() < 0 {
		return nil, attest.Errorf(attest.CodeConfig, "reading log", "", "there is no entry %d", r.GetFrom())
	}
	entries, checkpoint, err := s.options.Keystore.Entries(ctx, r.GetFrom(), int(min(max(r.GetLimit(), 1), 256)))
	if err != nil {
		return nil, err
	}
	reply := &adminpb.ReadLogReply{Checkpoint: checkpoint}
	size := 0
	for _, e := range entries {
		if size += len(e); size > maxLogBytes && len(reply.Entries) > 0 {
			break
		}
		reply.Entries = append(reply.Entries, e)
	}
	return reply, nil
}

// MarkMistimed implements the service.
func (s *Server) MarkMistimed(ctx context.Context, r *adminpb.MarkMistimedRequest) (*adminpb.Done, error) {
	return &adminpb.Done{}, s.options.Keystore.Mistimed(ctx, from(ctx).by, r.GetIndex(), r.GetReason())
}

// ProveEntry implements the service.
func (s *Server) ProveEntry(ctx context.Context, r *adminpb.ProveEntryRequest) (*sessionpb.Receipt, error) {
	receipt, err := s.options.Keystore.Prove(ctx, r.GetIndex())
	if err != nil {
		return nil, err
	}
	return &sessionpb.Receipt{Index: receipt.Index, Entry: receipt.Entry, Checkpoint: receipt.Checkpoint, Proof: receipt.Proof}, nil
}

// ProveConsistency implements the service.
func (s *Server) ProveConsistency(ctx context.Context, r *adminpb.ProveConsistencyRequest) (*adminpb.ProveConsistencyReply, error) {
	proof, checkpoint, err := s.options.Keystore.ProveConsistency(ctx, r.GetOld())
	return &adminpb.ProveConsistencyReply{Proof: proof, Checkpoint: checkpoint}, err
}

// AcceptRollback implements the service.
func (s *Server) AcceptRollback(ctx context.Context, r *adminpb.AcceptRollbackRequest) (*adminpb.Done, error) {
	return &adminpb.Done{}, s.options.Keystore.AcceptRollback(ctx, from(ctx).by, r.GetAccepted())
}
