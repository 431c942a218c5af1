"""What GRUB 2.06 hands to a Multiboot kernel: configurations, and what one printed that GRUB itself booted.

`tests/integration/test_grub_judges.py` lets GRUB say it again.
"""

from __future__ import annotations

FILES = {
    "/boot/other.cfg": """
set timeout=0
menuentry "child $v $w" { multiboot /boot/kernel.elf child v=$v w=$w d=$default c="$chosen" }
menuentry "child2" { multiboot /boot/kernel.elf child2 }
""",
    "/boot/empty.img": "",
    "/boot/grub/grubenv": "# GRUB Environment Block\nsaved=b c\n".ljust(1024, "#"),
    "/boot/my.env": "# GRUB Environment Block\nb=from-env\nc=not-asked\n".ljust(1024, "#"),
}
"""Files beside the configuration."""

FACTS = {
    "braces": (
        r"""
menuentry "x"{ multiboot /boot/kernel.elf ${a}e; module /boot/ramdisk.img e{f g} }
menuentry "y" { multiboot /boot/kernel.elf y }
""",
        '<e>[e "{f g}"]',
    ),
    "bynumber": (
        r"""
set default="1>1"
menuentry "1" { multiboot /boot/kernel.elf title-1 }
submenu "s" { menuentry "a" { multiboot /boot/kernel.elf a }
 menuentry "b" { multiboot /boot/kernel.elf b c=$chosen } }
""",
        "<b c=s>b>",
    ),
    "conditions": (
        r"""
if [ -f /boot/kernel.elf -a ! -e /nope ]; then a=1; fi
if test 10 -gt 9 -a 1 -lt 2; then b=1; else b=0; fi
if [ "$zzz" ]; then c=1; elif [ -z "$zzz" ]; then c=2; else c=3; fi
if ! search --file --set=found /nope; then d=none$found; fi
if search --file --set=found /boot/kernel.elf; then e=ok; fi
if [ x$grub_platform = xpc ]; then f=pc; fi
if false; then g=1; else g=2; fi
if [ a = b -o c = c ]; then h=1; fi
menuentry m { multiboot /boot/kernel.elf a=$a b=$b c=$c d=$d e=$e f=$f g=$g h=$h ${feature_menuentry_id} }
""",
        "<a=1 b=1 c=2 d=none e=ok f=pc g=2 h=1 y>",
    ),
    "configfile": (
        r"""
v=local; w=exp; export w; set default=1
menuentry "parent" { multiboot /boot/kernel.elf parent }
menuentry "other" { v=entry; configfile /boot/other.cfg; multiboot /boot/kernel.elf after }
""",
        '<child v= w=exp d= "c=other>child  exp">',
    ),
    "env": (
        r"""
load_env
set default="$saved"
load_env -f /boot/my.env b
menuentry "a" { multiboot /boot/kernel.elf A }
menuentry "b c" { multiboot /boot/kernel.elf B b=$b c=$c }
""",
        "<B b=from-env c=>",
    ),
    "escapes": (
        r"""
v=V
menuentry "t" { multiboot /boot/kernel.elf "a\"b" 'c"d' e\\f "g\h" 'i\j' "\$k" \x41 '\x42 x' "it's" a=b=c \
  $"trans $v" "${v}x" ${a}b $a$b x$1y$2z
  module /boot/ramdisk.img 'x y' "q\"" ; }
""",
        '<a\\"b c\\"d e\\\\f g\\\\h i\\\\j $k x41 "\\\\x42 x" it\\\'s a=b=c "trans V" Vx b xtyz>["x y" q\\"]',
    ),
    "failing": (
        r"""
menuentry "x" {
 multiboot /boot/kernel.elf x; module2 /boot/ramdisk.img two; initrd /boot/ramdisk.img
 module --nounzip /boot/ramdisk.img --nounzip one; module /boot/empty.img }
""",
        "<x>[--nounzip one][]",
    ),
    "functions": (
        r"""
function f { g x "$1" "y z"; shift; multiboot /boot/kernel.elf f $# "$@" after; return
 multiboot /boot/kernel.elf never; }
function g { set r="$r($#,$1,$2,$3)"; }
menuentry "M" arg { f "one" "t wo" 3; module /boot/ramdisk.img r="$r" $1 $2
 setparams p q; module /boot/ramdisk.img $1 $2 $3 $# }
""",
        '<f 2 "t wo" 3 after>["r=(3,x,one,y z)" M arg][p q 2]',
    ),
    "gettext": (
        r"""
menuentry "t" { multiboot /boot/kernel.elf $"hello there" x }
""",
        '<"hello there" x>',
    ),
    "loops": (
        r"""
set default=3
for k in aa "b b" cc; do for j in 1 2; do
 if [ "$k" = cc ]; then continue 2; fi
 if [ "$j" = 2 -a "$k" = aa ]; then break; fi
 menuentry "Start $k $j" "$k" $j { multiboot /boot/kernel.elf "$2" $3 k=$k }
done; done
i=x; while [ "$i" != xxxx ]; do i=x$i; done; until [ "$i" = yxxxx ]; do i=y$i; done
menuentry "m" { multiboot /boot/kernel.elf $i }
menuentry "n" { multiboot /boot/kernel.elf n $i $? }
""",
        "<yxxxx>",
    ),
    "numbertitle": (
        r"""
set default=1
menuentry "zero" { multiboot /boot/kernel.elf zero }
menuentry "one" { multiboot /boot/kernel.elf one }
menuentry "1" { multiboot /boot/kernel.elf title-1 }
""",
        "<one>",
    ),
    "params": (
        r"""
menuentry "T itle" "/my.iso" 'c d' --class x --id foo "e" {
 multiboot /boot/kernel.elf $# "$1" "$2" $3 "$3" $4 $5 "[$5]" \
 $0 "[$0]" "$@" -- $* -- "$*" c=$chosen ${2} $10; }
""",
        '<4 "T itle" /my.iso c d "c d" e [] [] "T itle" /my.iso "c d" e -- T itle /my.iso c d e '
        '-- "T itle /my.iso c d e" c=foo /my.iso>',
    ),
    "quoting": (
        r"""
set a="one  two" ; set empty= ; set sp=" lead trail "
menuentry "t" { multiboot /boot/kernel.elf "$a" $a '$a' a\ b x"y"'z' $empty "$empty" [$sp] \
  dyndbg="file x +p" \
  next#line # a comment
}
""",
        '<"one  two" one two $a "a b" xyz  [lead trail] "dyndbg=file x +p" next#line>',
    ),
    "source": (
        r"""
v=local
source /boot/other.cfg
menuentry "parent" { multiboot /boot/kernel.elf parent }
set default=2
""",
        "<parent>",
    ),
    "submenu": (
        r"""
v=local; w=exported; export w
menuentry "first" { multiboot /boot/kernel.elf first }
submenu "A > B" --id ab "p q" {
  x=inner
  menuentry "in >> 1" { multiboot /boot/kernel.elf one v=$v w=$w x=$x c="$chosen" $1 }
  menuentry "in > 2" --id two { multiboot /boot/kernel.elf two v=$v w=$w x=$x c="$chosen" "$2" d=$default }
}
set default="A >> B>in >> 2"
""",
        "<two v= w=exported x=inner c=ab>two  d=>",
    ),
    "syntax": (
        r"""
set default=1>0
set a=1 | set b=2
menuentry "x" { multiboot /boot/kernel.elf x a<b
 set c=rest
}
menuentry "y" { multiboot /boot/kernel.elf y a=$a b=$b c=$c }
""",
        "<y a= b= c=rest>",
    ),
    "twice": (
        r"""
menuentry "x" { multiboot /boot/kernel.elf first; module /boot/ramdisk.img m1
 multiboot --quirk-modules-after-kernel /boot/kernel.elf second }
""",
        "<second>",
    ),
}
"""Name: configuration, and the kernel's words in `<>` with each module's in `[]`."""
