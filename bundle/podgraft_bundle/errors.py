"""The one taxonomy of errors: a reason, its exit code, and a sentence a human can act on."""

from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """Exit codes of every podgraft command (design section 8)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    DEADLINE = 4


class Reason(StrEnum):
    """Why something was refused or failed; the value is what users see in events, conditions and exit texts."""

    # The bundle file.
    BUNDLE_TRUNCATED = "BundleTruncated"
    BUNDLE_CORRUPT = "BundleCorrupt"
    BUNDLE_TOO_LARGE = "BundleTooLarge"
    BUNDLE_UNSAFE_PATH = "BundleUnsafePath"
    BUNDLE_UNKNOWN_VERSION = "BundleUnknownVersion"
    BUNDLE_MALFORMED = "BundleMalformed"
    WRONG_ARCHITECTURE = "WrongArchitecture"
    # Trust, and where bundles come from.
    UNSIGNED_BUNDLE = "UnsignedBundle"
    UNTRUSTED_SIGNATURE = "UntrustedSignature"
    BAD_SIGNATURE = "BadSignature"
    BAD_KEY = "BadKey"
    FILE_EXISTS = "FileExists"
    REGISTRY_UNREACHABLE = "RegistryUnreachable"
    REGISTRY_REFUSED = "RegistryRefused"
    REGISTRY_NOT_ALLOWED = "RegistryNotAllowed"
    NOT_A_BUNDLE = "NotABundle"
    # The builder.
    PATCH_DOES_NOT_APPLY = "PatchDoesNotApply"
    BUILD_FAILED = "BuildFailed"
    BINARY_NOT_BUILT = "BinaryNotBuilt"
    NO_CHANGE = "NoChange"
    RUNNING_BINARY_DIFFERS = "RunningBinaryDiffers"
    INLINED_ELSEWHERE = "InlinedElsewhere"
    CHANGED_DATA = "ChangedData"
    CHANGED_LAYOUT = "ChangedLayout"
    CHANGED_SIGNATURE = "ChangedSignature"
    NEW_TLS = "NewTls"
    IFUNC_RESOLVER = "IfuncResolver"
    LTO_OBJECT = "LtoObject"
    HAND_WRITTEN_ASM = "HandWrittenAsm"
    IPA_RA_HAZARD = "IpaRaHazard"
    NEVER_QUIESCENT = "NeverQuiescent"
    SETJMP_CALLER = "SetjmpCaller"
    CHANGED_NORETURN = "ChangedNoreturn"
    LOCK_IMBALANCE = "LockImbalance"
    CHANGED_VTABLE = "ChangedVtable"
    CHANGED_ALIAS = "ChangedAlias"
    FOLDED_FUNCTIONS = "FoldedFunctions"
    WEAK_SYMBOL = "WeakSymbol"
    MOVED_BETWEEN_FILES = "MovedBetweenFiles"
    COMPUTED_GOTO = "ComputedGoto"
    LINKER_SET = "LinkerSet"
    CHANGED_CONSTRUCTOR = "ChangedConstructor"
    HARDENING_DIFFERS = "HardeningDiffers"
    COMPILER_DIFFERS = "CompilerDiffers"
    OTHER_MODULE_CHANGED = "OtherModuleChanged"
    UNKNOWN_CALLER = "UnknownCaller"
    HOOK_MISUSED = "HookMisused"
    UNRESOLVED_REFERENCE = "UnresolvedReference"
    UNSUPPORTED_RELOCATION = "UnsupportedRelocation"
    UNSUPPORTED_CHANGE = "UnsupportedChange"
    # The target process.
    NO_SUCH_PROCESS = "NoSuchProcess"
    PERMISSION_DENIED = "PermissionDenied"
    PROCESS_EXITED = "ProcessExited"
    MODULE_NOT_MAPPED = "ModuleNotMapped"
    PREIMAGE_MISMATCH = "PreimageMismatch"
    NO_PATCH_SITE = "NoPatchSite"
    ALREADY_TRACED = "AlreadyTraced"
    PAGE_CHANGED_BY_OTHERS = "PageChangedByOthers"
    TEXT_SEALED = "TextSealed"
    TARGET_FROZEN = "TargetFrozen"
    RESOURCE_LIMIT = "ResourceLimit"
    GS_BASE_IN_USE = "GsBaseInUse"
    EXCEPTION_TABLE = "ExceptionTable"
    NO_FSGSBASE = "NoFsgsbase"
    KERNEL_TOO_OLD = "KernelTooOld"
    UNSUPPORTED_TARGET = "UnsupportedTarget"
    NO_HOME_FOR_BLOCK = "NoHomeForBlock"
    NO_ROOM_NEARBY = "NoRoomNearby"
    NO_CARRIER = "NoCarrier"
    HELPER_UNREACHABLE = "HelperUnreachable"
    SECCOMP_FORBIDS = "SeccompForbids"
    FOREIGN_STATE = "ForeignState"
    BUSY = "Busy"
    NOT_APPLIED = "NotApplied"
    CONFLICTING_PATCH = "ConflictingPatch"
    DEADLINE_PASSED = "DeadlinePassed"
    HOOK_REFUSED = "HookRefused"
    HOOK_FAILED = "HookFailed"
    HOOK_CUT_OFF = "HookCutOff"
    # The node agent.
    CONTAINER_NOT_VISIBLE = "ContainerNotVisible"
    INTERNAL = "InternalError"


HINTS: dict[Reason, str] = {
    Reason.BUNDLE_TRUNCATED: "copy the bundle again; its size or end does not match what was built",
    Reason.BUNDLE_CORRUPT: "copy the bundle again, or build it again; its content does not match its digest",
    Reason.BUNDLE_TOO_LARGE: "split the patch; a bundle has size limits so that nodes stay safe",
    Reason.BUNDLE_UNSAFE_PATH: "build it with podgraft build; a bundle holds manifest.json, patch.o and signatures",
    Reason.BUNDLE_UNKNOWN_VERSION: "use the podgraft version that the bundle was made for, or build it again",
    Reason.BUNDLE_MALFORMED: "build the bundle again; the manifest does not follow the schema",
    Reason.WRONG_ARCHITECTURE: "build the bundle for the CPU of the target",
    Reason.UNSIGNED_BUNDLE: "sign it: podgraft sign --key KEY BUNDLE, with a key that is trusted here",
    Reason.UNTRUSTED_SIGNATURE: "sign it with a trusted key as well, or have the key added to the chart's trust.keys",
    Reason.BAD_SIGNATURE: "sign the bundle again; find out who changed it",
    Reason.BAD_KEY: "keys are ed25519 in PEM, as podgraft keygen makes them; private ones have mode 0600",
    Reason.FILE_EXISTS: "choose another name, or move the old file away",
    Reason.REGISTRY_UNREACHABLE: "check the registry's name, certificate and network, then try again",
    Reason.REGISTRY_REFUSED: "check the name, the digest and the credentials (docker login, imagePullSecrets)",
    Reason.REGISTRY_NOT_ALLOWED: "use https and a registry that the cluster's configuration allows (registries.*)",
    Reason.NOT_A_BUNDLE: "push it with podgraft push; an image or another artifact is no bundle",
    Reason.PATCH_DOES_NOT_APPLY: "make the patch against exactly this source tree (patch -p1, no fuzz)",
    Reason.BUILD_FAILED: "run the build command by hand in a copy of the source tree; its last lines are shown",
    Reason.BINARY_NOT_BUILT: "check --binary: a path relative to --source that the build command makes",
    Reason.NO_CHANGE: "the patch changes no machine code with these build flags: there is nothing to apply",
    Reason.RUNNING_BINARY_DIFFERS: "build with the compiler, flags and source of the running binary (--running FILE)",
    Reason.INLINED_ELSEWHERE: "include the functions that inlined the changed one, or build as the running binary was",
    Reason.CHANGED_DATA: "rewrite the patch so that it leaves existing data as it is",
    Reason.CHANGED_LAYOUT: "rewrite the patch so that it leaves existing types as they are",
    Reason.CHANGED_SIGNATURE: "rewrite the patch so that functions called from outside keep their signature",
    Reason.NEW_TLS: "rewrite the patch without new thread-local variables",
    Reason.IFUNC_RESOLVER: "an ifunc resolver runs once at start; it cannot be live-patched",
    Reason.LTO_OBJECT: "build without -flto",
    Reason.HAND_WRITTEN_ASM: "patch the C caller instead; assembler sources carry no function boundaries to rely on",
    Reason.IPA_RA_HAZARD: "build the running binary with -fno-ipa-ra, or change the callers as well",
    Reason.NEVER_QUIESCENT: "move what the fix changes into a function that returns, or declare a point (--point)",
    Reason.SETJMP_CALLER: "patch a caller or callee instead; --allow SetjmpCaller if no coroutine jumps back into it",
    Reason.CHANGED_NORETURN: "keep the noreturn attribute: callers have no code behind the call",
    Reason.LOCK_IMBALANCE: "make sure that no lock is held between two calls of the changed functions",
    Reason.CHANGED_VTABLE: "leave virtual functions and base classes as they are: objects keep their old table",
    Reason.CHANGED_ALIAS: "leave the names of existing functions as they are",
    Reason.FOLDED_FUNCTIONS: "build what runs without -fipa-icf and --icf, or change the folded functions alike",
    Reason.WEAK_SYMBOL: "patch the definition that the running binary uses",
    Reason.MOVED_BETWEEN_FILES: "leave functions and variables in the file that they are in",
    Reason.COMPUTED_GOTO: "make the table of labels const and local to the function, and keep no label in a variable",
    Reason.LINKER_SET: "leave sections with names of their own as they are: what walks through them knows their end",
    Reason.CHANGED_CONSTRUCTOR: "constructors have run already: do their work in a function that runs again",
    Reason.EXCEPTION_TABLE: "patch a function that neither throws nor catches, or use the shared libgcc_s",
    Reason.HARDENING_DIFFERS: "leave -fstack-protector and -fcf-protection as the running binary has them",
    Reason.COMPILER_DIFFERS: "build with the compiler that made the running binary; both are named above",
    Reason.OTHER_MODULE_CHANGED: "build a bundle for each module; where both hold the file, let --build make but one",
    Reason.UNKNOWN_CALLER: "build from the source that the running binary was made from",
    Reason.HOOK_MISUSED: "a hook may use data, podgraft.h and new functions of that kind: docs/hooks.md",
    Reason.UNRESOLVED_REFERENCE: "give the running binary with its symbols or debug file (--running)",
    Reason.UNSUPPORTED_RELOCATION: "report the relocation type; this code model is not supported",
    Reason.UNSUPPORTED_CHANGE: "see docs/limitations.md for what a patch may change",
    Reason.NO_SUCH_PROCESS: "check the pid; the process may have ended",
    Reason.PERMISSION_DENIED: "run as root or with CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE",
    Reason.PROCESS_EXITED: "the process ended by itself meanwhile; there is nothing left to patch",
    Reason.MODULE_NOT_MAPPED: "the process does not map the build that the bundle is for; build a bundle for it",
    Reason.PREIMAGE_MISMATCH: "somebody changed this code since start; find out who before patching",
    Reason.NO_PATCH_SITE: "no safe place for a jump was found in this function; patch a caller instead",
    Reason.ALREADY_TRACED: "end the debugger or tracer of this process, then try again",
    Reason.PAGE_CHANGED_BY_OTHERS: "a breakpoint, uprobe or another patcher changed this page; remove it first",
    Reason.TEXT_SEALED: "a program that seals its code (mseal) cannot be live-patched",
    Reason.TARGET_FROZEN: "thaw its control group (docker unpause, cgroup.freeze), then try again",
    Reason.RESOURCE_LIMIT: "raise the limit that is named, or free some of what it counts, then try again",
    Reason.GS_BASE_IN_USE: "the program uses the GS base register itself; it cannot be live-patched",
    Reason.NO_FSGSBASE: "the kernel or CPU does not offer FSGSBASE to programs (kernel >= 5.9)",
    Reason.KERNEL_TOO_OLD: "kernel 5.13 or newer is needed for mremap(DONTUNMAP) of file mappings",
    Reason.UNSUPPORTED_TARGET: "see docs/limitations.md for what a target may be",
    Reason.NO_HOME_FOR_BLOCK: "no executable mapping has 1 KiB of unused zero bytes at its end",
    Reason.NO_ROOM_NEARBY: "no free address range within 2 GiB of the module",
    Reason.NO_CARRIER: "no thread was in a state in which it can be borrowed; try again",
    Reason.HELPER_UNREACHABLE: "the helper thread did not start or ended; try again",
    Reason.SECCOMP_FORBIDS: "the target's seccomp filter forbids a system call that the helper needs",
    Reason.FOREIGN_STATE: "the target holds state of another podgraft version; use that version",
    Reason.BUSY: "another engine works on this process, or another transition is under way; wait for it",
    Reason.NOT_APPLIED: "no patch of that name is in this process (podgraft status shows what is)",
    Reason.CONFLICTING_PATCH: "revert the patch named above first, or have the bundle name it as replaced",
    Reason.DEADLINE_PASSED: "threads named above are still in old code; apply again to go on, or revert",
    Reason.HOOK_REFUSED: "the patch's author made its hook say no here: ask what the number means",
    Reason.HOOK_FAILED: "have the author correct the hook or its time limit; podgraft revert --skip-hooks does without",
    Reason.HOOK_CUT_OFF: "a fork copied the process in the middle of a hook: start this process anew",
    Reason.CONTAINER_NOT_VISIBLE: "the agent must see the host's processes; a runtime with its own kernel hides them",
    Reason.INTERNAL: "this is a bug in podgraft; please report it with the detail above",
}


class PodgraftError(Exception):
    """Something that ends the work: reason, detail (what was seen), hint (what would help)."""

    exit_code = ExitCode.FAILED

    def __init__(self, reason: Reason, detail: str, hint: str | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.hint = hint if hint is not None else HINTS[reason]


class Refusal(PodgraftError):
    """Refused before anything was touched: the target or file is as it was."""

    exit_code = ExitCode.REFUSED


class DeadlineError(PodgraftError):
    """The deadline passed with threads left on the other generation; the process runs on, consistently."""

    exit_code = ExitCode.DEADLINE
