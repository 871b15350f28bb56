"""Will a thread ever leave a function? What the code tells, before any process is seen."""

from enum import StrEnum

from iced_x86 import FlowControl

from podgraft_builder.code import is_branch
from podgraft_builder.objects import Function, ObjectFile, place_of

THREAD_STARTERS = frozenset({"pthread_create", "thrd_create"})
# Calls in which threads of a server wait for work.
WAITS = frozenset(
    {
        *("epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect", "accept", "accept4"),
        *("sigwait", "sigwaitinfo", "sigtimedwait", "sigsuspend", "pause", "pthread_cond_wait", "msgrcv", "mq_receive"),
        *("pthread_cond_timedwait", "sem_wait", "sem_timedwait", "io_getevents", "read", "recv", "recvfrom", "recvmsg"),
        *(
            "__poll_chk",
            "__read_chk",
            "__recv_chk",
            "__recvfrom_chk",
            "sleep",
            "usleep",
            "nanosleep",
            "clock_nanosleep",
        ),
    }
)


class Outlook(StrEnum):
    """How soon threads leave a function."""

    SOON = "soon"
    LATE = "late"
    NEVER = "never"


def outlook_of(  # noqa: PLR0911 (a table of cases)
    which: ObjectFile, function: Function, parts: tuple[Function, ...]
) -> tuple[Outlook, str]:
    """Say how soon threads leave a function of an object, and why; why follows the function's name in a sentence."""
    pieces = (function, *parts)
    loops = _calls_in_loop(which, function)
    if "main" in function.aliases:
        return Outlook.NEVER, "stays on the stack of the first thread"
    if loops is not None and not any(_leaves(which, piece, pieces) for piece in pieces):
        if not loops & WAITS and any(_ends_program(which, piece) for piece in pieces):
            return Outlook.SOON, "ends the program"
        return Outlook.NEVER, "never returns"
    if loops is not None and loops & WAITS:
        return Outlook.LATE, f"calls {min(loops & WAITS)} in a loop"
    if _starts_thread(which, function):
        if loops:
            return Outlook.NEVER, "is the start of a thread and loops until the thread ends"
        return Outlook.LATE, "is the start of a thread"
    return Outlook.SOON, "returns"


def _calls_in_loop(which: ObjectFile, function: Function) -> frozenset[str] | None:
    """Return what is called between a branch and the place before it that it leads back to, None without a loop."""
    steps = which.decoded(function).steps
    spans = [
        (step.instruction.near_branch_target, step.instruction.ip)
        for step in steps
        if is_branch(step.instruction)
        and not step.relocations
        and step.instruction.flow_control != FlowControl.CALL
        and step.instruction.near_branch_target <= step.instruction.ip
    ]
    if not spans:
        return None
    found = set()
    for step in steps:
        if any(low <= step.instruction.ip <= high for low, high in spans):
            called = step.instruction.flow_control in {FlowControl.CALL, FlowControl.INDIRECT_CALL}
            found |= {item.symbol.name or "(local)" for item in step.relocations} if called else set()
            found |= {"(pointer)"} if called and not step.relocations else set()
    return frozenset(found)


def _leaves(which: ObjectFile, piece: Function, pieces: tuple[Function, ...]) -> bool:
    """Say whether a piece of a function has a return or a jump to another function."""
    for step in which.decoded(piece).steps:
        flow = step.instruction.flow_control
        if flow == FlowControl.RETURN:
            return True
        if flow == FlowControl.INDIRECT_BRANCH and not _switches(which, piece):
            return True
        if flow in {FlowControl.UNCONDITIONAL_BRANCH, FlowControl.CONDITIONAL_BRANCH} and step.relocations:
            place = place_of(step.relocations[0], step.instruction.next_ip - step.relocations[0].offset)
            target = which.function_at(place.section, place.offset) if place.section is not None else None
            if target not in pieces:
                return True
    return False


def _ends_program(which: ObjectFile, piece: Function) -> bool:
    """Say whether a piece ends with a call that does not come back, or has an instruction that traps."""
    steps = which.decoded(piece).steps
    last = steps[-1].instruction.flow_control if steps else FlowControl.NEXT
    traps = any(s.instruction.flow_control in {FlowControl.EXCEPTION, FlowControl.INTERRUPT} for s in steps)
    return traps or last in {FlowControl.CALL, FlowControl.INDIRECT_CALL}


def _switches(which: ObjectFile, function: Function) -> bool:
    """Say whether constant data points into a function: then an indirect jump in it is a switch."""
    return any(
        item.symbol.section == function.section
        for section in which.sections.values()
        if section.constant and not section.executable and section.name.startswith((".rodata", ".data.rel.ro"))
        for item in section.relocations
    )


def _starts_thread(which: ObjectFile, function: Function) -> bool:
    """Say whether the address of a function is loaded shortly before a call that starts a thread."""
    for other in dict.fromkeys(which.functions.values()):
        near = 0
        for step in which.decoded(other).steps:
            near -= 1
            for item in step.relocations:
                place = place_of(item, step.instruction.next_ip - item.offset)
                if (place.section, place.offset) == (function.section, function.start):
                    near = 12
                elif near > 0 and item.symbol.name in THREAD_STARTERS:
                    return True
    return False
