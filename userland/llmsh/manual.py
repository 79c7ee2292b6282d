"""What `help` writes."""

MANUAL = """\
A line is a command of the shell, a program of the host, or a prompt for the model:

  "why is the sky blue?"         a quoted string is a prompt; the context is @main
  ? why is the sky blue?         the same without quotes, to the end of the line
  @casual "say that again"       in another context
  git diff | "one-line summary"  what comes in stands before the prompt
  "five names" | sort > names    and the answer goes wherever output goes
  ls -l && make; vim notes       programs, as in any shell: | > >> < ; && ||

Contexts
  ctx                     list: tokens, turns, KV blocks and how many are shared
  ctx new NAME [-s TEXT]  make one, with a system prompt, and use it
  ctx use NAME            make it the current one
  ctx rm NAME...          free it
  ctx name NEW            rename the current one
  fork [NAME...]          make contexts that go on from here; nothing is copied
  undo [N]                take the last N turns back (1)

Tasks and memory (\\ps, \\top, \\free, \\kill, \\dmesg and \\pmap are the host's)
  ps [--contexts] [-w]    the tasks of the kernel; ps --help explains the columns
  top                     the same as it changes, and how fast it goes
  pmap [@NAME|PID [CTX]]  the KV blocks of a context, as a picture
  free [-h]               the pools of KV blocks
  lsdev                   devices, and what is on them
  dmesg [-w]              the kernel's log
  kill [-SIGNAL] PID...   TERM, KILL, INT, STOP, CONT

The shell
  set [temp=N] [max=N] [seed=N|none]
                          how the model samples; without arguments, show it
  cd [DIR|-]   pwd   help   exit [N]

Words      'as it is'   "with $x and \\" \\$ \\\\"   \\x   ~   *.txt   # a comment
Variables  $? status of the last command   $_ last answer   $NAME environment
Keys       Ctrl-C stops an answer (what was written stays) or a program; Ctrl-D leaves
Scripts    llmsh FILE, llmsh -c LINES, or lines on stdin: temperature 0, answers on stdout.
           A program in a script on stdin reads nothing, unless a pipe or < feeds it.
           A prompt reads what a pipe or < feeds it; cat | "..." gives it stdin, with -c or FILE.
History    {history}; lines that begin with a blank are
           not kept. LLMSH_HISTORY=PATH puts it elsewhere, LLMSH_HISTORY= keeps none.
"""
