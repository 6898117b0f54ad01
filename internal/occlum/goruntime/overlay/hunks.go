package overlay

// Hunks returns all that Occlum needs.
func Hunks() []Hunk {
	return append(CloneHunks(), ZeroHunk(), HintsHunk())
}

// CloneHunks start a thread the way Occlum's clone(2) can: the child's entry point and what it needs are on its
// stack. On plain Linux the child jumps to the same entry point itself.
func CloneHunks() []Hunk {
	const file = "runtime/sys_linux_amd64.s"
	return []Hunk{{
		Name: "clone: parent",
		File: file,
		Old: `	ORQ 	$0x00080000, DI //add flag CLONE_SETTLS(0x00080000) to call clone
nog1:
	MOVL	$SYS_clone, AX
	SYSCALL
`,
		New: `	ORQ 	$0x00080000, DI //add flag CLONE_SETTLS(0x00080000) to call clone
nog1:
	// Occlum enters the child at 0(stk), with SP = stk and no other register.
	SUBQ	$32, SI
	LEAQ	runtime·clonechild(SB), AX
	MOVQ	AX, 0(SI)
	MOVQ	R13, 8(SI)
	MOVQ	R9, 16(SI)
	MOVQ	R12, 24(SI)
	MOVL	$SYS_clone, AX
	SYSCALL
`,
	}, {
		Name: "clone: child",
		File: file,
		Old: `	// In child, on new stack.
	MOVQ	SI, SP

	// If g or m are nil, skip Go-related setup.
	CMPQ	R13, $0    // m
`,
		New: `	// In child on Linux, on new stack.
	MOVQ	SI, SP
	JMP	runtime·clonechild(SB)

TEXT runtime·clonechild(SB),NOSPLIT|NOFRAME|TOPFRAME,$0
	MOVQ	8(SP), R13
	MOVQ	16(SP), R9
	MOVQ	24(SP), R12
	ADDQ	$32, SP

	// If g or m are nil, skip Go-related setup.
	CMPQ	R13, $0    // m
`,
	}}
}

// ZeroHunk makes the allocator clear memory that it gave back with madvise before it hands it out again.
func ZeroHunk() Hunk {
	return Hunk{
		Name:  "zero",
		File:  "runtime/mem_linux.go",
		Since: "go1.26", // before, the allocator never took such memory for zeroed
		Old: `func needZeroAfterSysUnusedOS() bool {
	return debug.madvdontneed == 0
}
`,
		New: `func needZeroAfterSysUnusedOS() bool {
	return true
}
`,
	}
}

// HintsHunk makes the heap give up its address hints after the first that is not honoured.
func HintsHunk() Hunk {
	return Hunk{
		Name: "hints",
		File: "runtime/malloc.go",
		Old: `		*hintList = hint.next
		h.arenaHintAlloc.free(unsafe.Pointer(hint))
	}

	if size == 0 {
`,
		New: `		*hintList = nil
	}

	if size == 0 {
`,
	}
}
