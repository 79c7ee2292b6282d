"""What `help` writes."""

MANUAL = """\
A line is a command of the shell, a program of the host, or a prompt for the model:

  "why is the sky blue?"         a quoted string is a prompt; the context is @main
  ? why is the sky blue?         the same without quotes, to the end of the line
  @casual "say that again"       in another context
  git diff | "one-line summary"  what comes in stands before the prompt
  "five names" | sort > names    and the answer goes wherever output goes
  "sum up" -t 0 -n 50 -f notes   options: -t -n --top-p --top-k --min-p --seed --stop TEXT
                                 -f FILE  -s SYSTEM  --rm (in a fork, then freed)  --raw  -v
                                 --schema FILE  --regex PATTERN  --lark FILE  (what fits only)
  ? what is wrong in @./a.py     @./path sends a file along
  chat [-s TEXT] [-c @NAME]      each line is a prompt, /name a builtin; Ctrl-D comes back
       [--load SAVE] [--save SAVE]
  ls -l && make; vim notes       programs, as in any shell

Contexts
  ctx                     list: tokens, turns, KV blocks and how many are shared
  ctx new NAME [-s TEXT]  make one, with a system prompt, and use it
  ctx use NAME            make it the current one
  ctx rm NAME...          free it
  ctx name NEW            rename the current one
  ctx save [@NAME] [SAVE] keep it on the disk, encrypted; ctx saves lists, ctx drop SAVE deletes
  ctx load SAVE [@NAME]   bring it back, in this kernel or a later one
  ctx tree                what they share with one another
  ctx pin [NAME]          keep its KV on the device; ctx unpin ends that
  ctx demote [NAME]       let its KV leave the device now; ctx prefetch brings it back
  ctx retain SECS [NAME]  let the KV of others leave first
  fork [NAME...]          make contexts that go on from here; nothing is copied
  undo [N]                take the last N turns back (1)

Tasks and memory (\\ps, \\top, \\free, \\vmstat, \\kill ... are the host's)
  ps [--contexts] [-w]    the tasks of the kernel; ps --help explains the columns
  top                     the same as it changes, and how fast it goes
  pmap [@NAME|PID [CTX]]  the KV blocks of a context, as a picture
  free [-h]               the pools of KV blocks, on the device and below it
  vmstat [SECONDS [N]]    blocks, copies and tokens as they change
  explain [-p PID]        what an error means; what a task waits for, and what its KV came to
  ports [-w]              who answers calls and takes messages, and what waits there
  usage                   what users, groups and tasks have used
  limit [PID]             what they may use, or a limit of it
  policy [NAME]           who goes first on the device
  lsdev                   devices, and what is on them
  dmesg [-w]              the kernel's log
  kill [-SIGNAL] PID...   TERM, KILL, INT, STOP, CONT, HUP, USR1; --tree, -g GROUP
  group NAME PID...       tasks that are weighed and signalled together
  renice -n NICE PID...   their weight, -20 to 19; nice [-n NICE] FILE starts with one
  {commands}

The shell
  set [temp=N] [max=N] [seed=N|none] [top_p=N] [top_k=N] [min_p=N]
                          how the model samples; without arguments, show all
  set verbose=on          tokens and times below every answer
  set markdown=off        answers as they are, on the terminal too; copy [N] has the raw text
  set history=off         keep no lines
  set -e -u -x -o pipefail    as in bash; + switches off
  cd [DIR|-]   pwd   history [N]   alias [NAME=WORDS]   source FILE   help   exit [N]

Language   | |& > >> < 2> 2>> 2>&1 &> <<< <<WORD ; && || ! {{ ...; }} $( ) NAME=value
           if for while until break continue read export unset shift
           Not in this version: jobs (&), ( ) , $(( )), case, functions.
Words      'as it is'   "with $x, $(date) and \\" \\$ \\\\"   \\x   ~   *.txt   # a comment
Variables  $? status   $_ last answer   $finish stop, length or cancelled   $usage as JSON
           $ctx $model   $1 ... $# "$@" of a script   $NAME yours, or the environment's
Keys       Ctrl-C stops an answer (what was written stays) or a program; Ctrl-D leaves; what is
           typed during an answer waits for the prompt; Tab; Ctrl-R; Alt-Enter begins a row;
           Ctrl-X Ctrl-E opens $EDITOR
Scripts    llmsh FILE ARGUMENTS, llmsh -c LINES, or lines on stdin: temperature 0, answers on
           stdout. llmsh -n FILE parses only. A program in a script on stdin reads nothing, unless
           a pipe or < feeds it. A prompt reads what a pipe or < feeds it; cat | "..." gives it
           stdin, with -c or FILE.
History    {history}; lines that begin with a blank are
           not kept. !! !N !prefix bring lines back. LLMSH_HISTORY=PATH puts it elsewhere,
           LLMSH_HISTORY= keeps none.
"""
